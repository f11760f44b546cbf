"""What would be typed after `vllm serve`. Pure; needs no vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepinfer.fleet.engine_arguments import by_name
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import EngineLaunch


def command_line(launch: EngineLaunch) -> list[str]:
    """The model by `--model`. The user's own engine_args come last and win."""
    if launch.model_path is None:
        raise EngineWillNotStart("vLLM needs a model folder, and the launch names none.")
    fields: dict[str, Any] = {
        "model": _model(launch.model_path),
        "served_model_name": list(launch.served_names),
        "dtype": launch.dtype,
        "max_model_len": launch.max_model_len,
        "quantization": launch.quantization,
        "tensor_parallel_size": launch.tensor_parallel_size,
        "enable_prompt_tokens_details": True,  # what was cached: OpenAI's answers tell it, and routers compare it
    }
    if launch.device != "cpu":
        fields["gpu_memory_utilization"] = launch.gpu_memory_utilization
    return [word for name, value in (fields | by_name(launch.engine_args)).items() for word in words(name, value)]


def words(name: str, value: Any) -> Iterator[str]:
    """One flag: true and false are its two forms, lists repeat its value, objects travel as JSON."""
    flag = f"--{name.replace('_', '-')}"
    match value:
        case None:
            return
        case bool():
            yield flag if value else f"--no-{flag[2:]}"
        case list() | tuple():
            yield flag
            yield from map(_word, value)
        case _:
            # In one word, so that a value that begins with a dash is never taken for a flag.
            yield f"{flag}={_word(value)}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _model(path: Path) -> str:
    """A folder of vLLM's kind of GGUF holds one file, and vLLM wants that."""
    ggufs = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    return str(ggufs[0]) if len(ggufs) == 1 else str(path)
