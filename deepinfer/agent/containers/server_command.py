"""What runs in a container: the image's own way to start vLLM's server, or ours, with a launch's arguments. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.engine_shim.engines.vllm_command import command_line, words
from deepinfer.fleet.launch import EngineLaunch

_OURS = ("vllm", "serve")
_SHELLS = ("sh", "bash")
_API_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class Command:
    """As `docker create` takes it."""

    entrypoint: tuple[str, ...] | None  # None: the image's own
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server shall listen, inside its container."""

    host: str
    port: int


def server_command(
    image_entrypoint: Sequence[str], wanted: Sequence[str] | None, launch: EngineLaunch, own: Mapping[str, Any]
) -> Command:
    """`own` are the flags that deepinfer sets; `wanted` is the user's entry point, which gets the arguments alone.

    So does an image's own that starts vLLM. Where there is none, or a shell, `vllm serve` is run instead; any other is
    taken for a script that prepares and then runs what it is given.
    """
    given = [*command_line(launch), *(word for name, value in own.items() for word in words(name, value))]
    entrypoint = tuple(image_entrypoint if wanted is None else wanted)
    if wanted is not None or _starts_vllm(entrypoint):
        after = entrypoint[-1:] == ("serve",)
        return Command(None if wanted is None else entrypoint, tuple(_model_first(given) if after else given))
    if not entrypoint or Path(entrypoint[0]).name in _SHELLS:
        return Command(_OURS, tuple(_model_first(given)))
    return Command(None, (*_OURS, *_model_first(given)))


def listening(place: Listening, kv_events: Mapping[str, Any] | None) -> dict[str, Any]:
    """The flags that deepinfer sets itself."""
    return {
        "host": place.host,
        "port": place.port,
        "kv_events_config": kv_events,
        "disable_uvicorn_access_log": True,  # the sidecar asks often
    }


def _model_first(given: Sequence[str]) -> list[str]:
    """As `vllm serve` wants it."""
    model = next(word for word in given if word.startswith("--model="))
    return [model.removeprefix("--model="), *(word for word in given if word != model)]


def _starts_vllm(entrypoint: Sequence[str]) -> bool:
    return _API_SERVER in entrypoint or [Path(word).name for word in entrypoint[-2:]] == ["vllm", "serve"]
