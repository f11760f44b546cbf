"""vLLM's command line, for the simulated engine: vLLM's way of writing flags, and those that mean something here.

Flags of vLLM's that change nothing in a simulation are taken and left; one that neither knows is an error, as it is
there. The engine's own arguments are flags as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from deepinfer.engine_shim.engine_args import SimArgs

_ALSO_CALLED: Final = {"kv_blocks": "--num-gpu-blocks-override"}
_VALUES_LEFT: Final = (
    "dtype",
    "quantization",
    "gpu-memory-utilization",
    "tensor-parallel-size",
    "pipeline-parallel-size",
    "data-parallel-size",
    "tokenizer",
    "download-dir",
    "load-format",
    "seed",
    "kv-cache-dtype",
    "max-num-batched-tokens",
    "swap-space",
    "uvicorn-log-level",
)
_SWITCHES_LEFT: Final = (
    "enable-prefix-caching",
    "enable-prompt-tokens-details",
    "enable-chunked-prefill",
    "enable-log-requests",
    "enforce-eager",
    "trust-remote-code",
    "disable-log-stats",
    "disable-log-requests",
    "disable-uvicorn-access-log",
)


class KvEventsConfig(msgspec.Struct, frozen=True):
    """What is used of vLLM's --kv-events-config."""

    enable_kv_cache_events: bool = False
    publisher: str = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    topic: str = ""


@dataclass(frozen=True)
class Flags:
    model: str
    names: tuple[str, ...]  # the first is the one answers carry
    host: str
    port: int
    max_model_len: int | None
    kv_events: KvEventsConfig | None  # None: they are told to nobody
    sim: SimArgs

    @property
    def folder(self) -> Path | None:
        """Of a model whose tokenizer is used; any other model is only a name."""
        folder = Path(self.model)
        return folder if (folder / "tokenizer.json").is_file() else None


def parsed(words: Sequence[str]) -> Flags:
    """Ends the process with 2 and a sentence when they are wrong, as vLLM does."""
    parser = _parser()
    given = parser.parse_args([_dashed(word) for word in words[words[:1] == ["serve"] :]])
    model = given.model or given.model_tag or parser.error("name the model: vllm serve MODEL")
    if Path(model).is_absolute() and not Path(model).is_dir():
        parser.error(f"there is no model folder {model}; is it mounted into this container?")
    return Flags(
        model=model,
        names=tuple(given.served_model_name or [model]),
        host=given.host,
        port=given.port,
        max_model_len=given.max_model_len,
        kv_events=_kv_events(given.kv_events_config, parser),
        sim=_sim_args(vars(given), parser),
    )


def _dashed(word: str) -> str:
    """--max_model_len is --max-model-len."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vllm serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="a folder with a tokenizer, or any name")
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104  # vLLM's: in a container, its port must be published
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--kv-events-config", metavar="JSON")
    for name, field in SimArgs.model_fields.items():
        options = [f"--{name.replace('_', '-')}", *([_ALSO_CALLED[name]] if name in _ALSO_CALLED else [])]
        parser.add_argument(*options, default=argparse.SUPPRESS, **_kind(field))
    for name in _VALUES_LEFT:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in _SWITCHES_LEFT:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    return parser


def _kind(field: FieldInfo) -> dict[str, Any]:
    return {"action": argparse.BooleanOptionalAction} if field.annotation is bool else {"type": field.annotation}


def _sim_args(given: dict[str, Any], parser: argparse.ArgumentParser) -> SimArgs:
    try:
        return SimArgs.model_validate({name: given[name] for name in SimArgs.model_fields if name in given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parser.error(f"argument --{str(first['loc'][0]).replace('_', '-')}: {first['msg']}")


def _kv_events(given: str | None, parser: argparse.ArgumentParser) -> KvEventsConfig | None:
    if given is None:
        return None
    try:
        config = msgspec.json.decode(given, type=KvEventsConfig)
    except msgspec.DecodeError as error:
        parser.error(f"argument --kv-events-config: {error}")
    return config if config.enable_kv_cache_events and config.publisher == "zmq" else None
