"""The files that say what tokens a prompt will be: a gateway that has them can tell before the engine does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from deepinfer.fleet.engine_arguments import by_name
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind

BYTES: Final = "bytes"
"""The kind of an engine whose tokens are bytes (byte_tokenizer.py); there are no files then."""
FOLDER: Final = "folder"
"""The kind of an engine that reads its prompts by a model folder's tokenizer.json and chat template."""
TOKENIZER: Final = "tokenizer.json"
TEMPLATE: Final = "chat_template.jinja"

_NAMES: Final = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", TEMPLATE)
_MOST_BYTES: Final = 256 << 20
_PIECE_BYTES: Final = 1 << 20
_FLAGS: Final = frozenset(
    {
        "chat_template_content_format",
        "config",
        "default_chat_template_kwargs",
        "enable_prompt_embeds",
        "exclude_tools_when_tool_choice_none",
        "hf_config_path",
        "hf_overrides",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
    }
)
"""vLLM's, each of which may make other tokens of a prompt than the model folder says."""
_OWN_PROMPTS: Final = frozenset({"gpt_oss"})
"""Model types whose chats vLLM does not render by the template, and /tokenize does not tell."""


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """Equal digests mean equal files, whatever engine has them."""

    kind: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        content = sha256(self.kind.encode())
        for name in sorted(self.files):
            content.update(b"\0%s\0%d\0" % (name.encode(), len(self.files[name])))
            content.update(self.files[name])
        return content.hexdigest()[:32]


class Piece(NamedTuple):
    """Of PromptFiles on their way. The first has the kind, and is of no file."""

    kind: str = ""
    file: str = ""
    content: bytes = b""


def prompt_files(launch: EngineLaunch) -> PromptFiles | None:
    """As they lie on the disk. None: this engine's prompts cannot be foreseen. Blocks."""
    folder = launch.model_path
    if folder is None:
        return PromptFiles(BYTES) if launch.engine is EngineKind.SIM and launch.container is None else None
    paths = {name: folder / name for name in _NAMES}
    if launch.engine is EngineKind.VLLM and not _as_the_folder_says(launch, folder, paths):
        return None
    with suppress(OSError):
        there = {name: path for name, path in paths.items() if path.is_file()}
        if TOKENIZER in there and sum(path.stat().st_size for path in there.values()) <= _MOST_BYTES:
            return PromptFiles(FOLDER, {name: path.read_bytes() for name, path in there.items()})
    return None


def pieces_of(files: PromptFiles) -> Iterator[Piece]:
    yield Piece(files.kind)
    for name, content in files.files.items():
        for start in range(0, max(1, len(content)), _PIECE_BYTES):
            yield Piece("", name, content[start : start + _PIECE_BYTES])


def joined(pieces: Iterable[Piece]) -> PromptFiles:
    kind, contents = "", dict[str, list[bytes]]()
    for piece in pieces:
        kind = kind or piece.kind
        if piece.file:
            contents.setdefault(piece.file, []).append(piece.content)
    return PromptFiles(kind, {name: b"".join(content) for name, content in contents.items()})


def _as_the_folder_says(launch: EngineLaunch, folder: Path, paths: dict[str, Path]) -> bool:
    """Whether vLLM goes by the folder; a chat template given as a file takes the place of the folder's own."""
    flags = {name: value for name, value in by_name(launch.engine_args).items() if value not in (None, False)}
    given = flags.get("chat_template")
    if given is not None:
        # Inside of a container the path may name another file.
        if launch.container is not None or not isinstance(given, str) or not Path(given).is_file():
            return False
        paths[TEMPLATE] = Path(given)
    elif (folder / "chat_template.json").exists() and not paths[TEMPLATE].exists():
        return False  # a processor's, which comes before the tokenizer's
    return not flags.keys() & _FLAGS and _model_type(folder) not in _OWN_PROMPTS


def _model_type(folder: Path) -> Any:
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_bytes())
        return config.get("model_type") if isinstance(config, dict) else None
    return None
