"""Turns a GGUF file into an ordinary safetensors folder: `python -m ….layer_shard.gguf_import SOURCE.gguf DEST_DIR`.

The quantised weights are expanded to bf16, so the folder is bigger than the file and no more precise than it was. The
folder appears under its name only when it is whole: it is written beside it first, and renamed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SHARD_SIZE = "100MB"

Progress = Callable[[str], None]


class GgufImportError(Exception):
    """The GGUF file cannot be turned into a model folder."""


def import_gguf(source: Path, destination: Path, progress: Progress = lambda line: None) -> Path:
    """Write `source` as a safetensors folder at `destination`, which must not exist yet; answers `destination`."""
    if not source.is_file():
        raise GgufImportError(f"There is no file {source}; give the path of a .gguf file.")
    if destination.exists():
        raise GgufImportError(f"{destination} exists already; remove it or choose another folder.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _write(source, half_made, progress)
        _let_others_read(half_made)
        half_made.rename(destination)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:  # what the readers raise
        raise GgufImportError(f"{source} cannot be converted ({error}); is it a whole GGUF file?") from error
    finally:
        shutil.rmtree(half_made, ignore_errors=True)  # gone already when the renaming worked
    progress(f"ready: {destination}")
    return destination


def _write(source: Path, folder: Path, progress: Progress) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported, hence before
    import torch
    import transformers

    _silence(transformers)
    progress(f"reading {source.name}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    progress("expanding the weights to bf16")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    _forget_quantization(model)
    _name_the_end_tokens(model, tokenizer)
    progress("writing safetensors")
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)


def _let_others_read(folder: Path) -> None:
    """mkdtemp and safetensors write for one user only; a model folder is read by other users' engines too."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _silence(transformers: Any) -> None:
    """Our progress lines are the only ones: libraries would draw bars over them."""
    import transformers.modeling_gguf_pytorch_utils as reading

    reading.tqdm = partial(reading.tqdm, disable=True)  # type: ignore[attr-defined]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("transformers", "gguf", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _forget_quantization(model: Any) -> None:
    """The saved weights are plain bf16; a config that still says GGUF would make every reader refuse them."""
    for holder, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False


def _name_the_end_tokens(model: Any, tokenizer: Any) -> None:
    """GGUF has no generation_config: without these ids an answer would run to its limit."""
    ids = {tokenizer.eos_token_id, model.config.eos_token_id} - {None}
    model.generation_config.eos_token_id = sorted(ids) if len(ids) > 1 else next(iter(ids), None)
    model.generation_config.bos_token_id = model.config.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a GGUF file into a safetensors model folder.")
    parser.add_argument("source", type=Path, help="the .gguf file")
    parser.add_argument("destination", type=Path, help="the folder to make")
    given = parser.parse_args(arguments)
    try:
        import_gguf(given.source, given.destination, lambda line: print(line, file=sys.stderr, flush=True))
    except GgufImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
