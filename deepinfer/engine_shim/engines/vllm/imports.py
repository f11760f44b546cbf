"""Where the names that the shim needs lie in each version of vLLM. One table, so that a new version changes one place.

Read in the sources of 0.11 to 0.33: the newest place comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Final

from deepinfer.fleet.errors import EngineWillNotStart

KNOWN_VERSIONS: Final = "0.11 to 0.33"
_CLI_ARGS: Final = tuple(f"vllm.entrypoints.{folder}.cli_args" for folder in ("common", "launchers", "openai"))
PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "AsyncEngineArgs": ("vllm.engine.arg_utils",),
    "AsyncLLM": ("vllm.v1.engine.async_llm",),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils", "vllm.utils"),
    "RequestOutputKind": ("vllm.sampling_params",),
    "SamplingParams": ("vllm.sampling_params",),
    "StatLoggerBase": ("vllm.v1.metrics.loggers",),
    "UsageContext": ("vllm.usage.usage_lib",),
    "build_app": ("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server"),
    "init_app_state": ("vllm.entrypoints.launchers.api_server.app_state", "vllm.entrypoints.openai.api_server"),
    "make_arg_parser": _CLI_ARGS,
    "validate_parsed_serve_args": _CLI_ARGS,
}


@dataclass(frozen=True, slots=True)
class Vllm:
    """The installed vLLM, as far as the shim uses it."""

    version: str
    names: Mapping[str, Any]
    refusals: tuple[type[Exception], ...]  # what it raises for a request that is wrong

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


def imported() -> Vllm:
    """Takes seconds. `EngineWillNotStart` names what this vLLM has elsewhere than any version known here."""
    try:
        version = str(import_module("vllm").__version__)
    except ImportError as error:
        raise EngineWillNotStart(f"vLLM cannot be imported here ({error}); install it anew.") from error
    return Vllm(version, {name: _found(name, modules, version) for name, modules in PLACES.items()}, _refusals())


def called(function: Callable[..., Any], known: Mapping[str, Any], version: str) -> Any:
    """Call a function of vLLM's whose parameters change between versions: each gets the value known by its name."""
    parameters = signature(function).parameters.values()
    unknown = [p.name for p in parameters if p.name not in known and p.default is p.empty]
    if unknown:
        raise EngineWillNotStart(_changed(version, f"{function.__name__} now also needs {', '.join(unknown)}"))
    return function(**{p.name: known[p.name] for p in parameters if p.name in known})


def _refusals() -> tuple[type[Exception], ...]:
    """ValueError in older versions; a family of its own in newer ones, where nothing of it is a ValueError."""
    with suppress(ModuleNotFoundError, AttributeError):
        return (ValueError, import_module("vllm.exceptions").VLLMClientError)
    return (ValueError,)


def _found(name: str, modules: tuple[str, ...], version: str) -> Any:
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and not module.startswith(error.name or "?"):
                raise EngineWillNotStart(
                    f"vLLM {version} cannot be imported whole: {error}; install it anew."
                ) from error
    raise EngineWillNotStart(_changed(version, f"{name} is not in {' or '.join(modules)}"))


def _changed(version: str, what: str) -> str:
    return (
        f"vLLM {version} differs from the versions this deepinfer knows ({KNOWN_VERSIONS}): {what}; install one of "
        "these with `deepinfer engine install vllm --version X`."
    )
