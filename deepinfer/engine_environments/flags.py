"""Whether `engine_args` are arguments that an engine has and a user may set. Pure.

An engine's own list of flags is written down when it is installed (`flags.json`), so that a typo is found before
anything is started. Which values make sense together is the engine's to judge.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from deepinfer.engine_environments.compatibility import compatibility
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.resource import Resource
from deepinfer.fleet.spec import EngineKind

_TITLES = {EngineKind.VLLM: "vLLM"}


class Flag(Resource):
    """One flag under all its names."""

    options: tuple[str, ...]  # "--max-num-seqs"
    takes_value: bool
    many: bool = False
    choices: tuple[str, ...] | None = None


class EngineFlags(Resource):
    """Every flag of one version of an engine."""

    engine: EngineKind
    version: str
    flags: tuple[Flag, ...]

    @property
    def title(self) -> str:
        return f"{_TITLES.get(self.engine, self.engine)} {self.version}"


def check_reserved(kind: EngineKind, args: Mapping[str, Any]) -> None:
    """What holds for every version. Raises `InvalidRequest` naming the argument and what to do instead."""
    reserved = compatibility().reserved.get(kind, {})
    for name in args:
        bare = _plain(name).partition(".")[0]
        if bare in reserved or bare.removeprefix("no_") in reserved:
            raise _refused(name, f"engine_args may not set {name}: {reserved.get(bare) or reserved[bare[3:]]}.")


def check_flags(args: Mapping[str, Any], known: EngineFlags) -> None:
    """Raises `InvalidRequest` for the first that this version does not have, or not so."""
    by_option = {option: flag for flag in known.flags for option in flag.options}
    for name, value in args.items():
        flag = next((by_option[option] for option in _spellings(name) if option in by_option), None)
        if flag is None:
            raise _refused(name, f"{known.title} has no argument {name}{_hint(name, by_option)}.")
        check_reserved(known.engine, dict.fromkeys(flag.options))  # also under an alias such as tp
        if "." not in name:
            _check_value(name, value, flag, known)


def _check_value(name: str, value: Any, flag: Flag, known: EngineFlags) -> None:
    if not flag.takes_value and not isinstance(value, bool | None):
        raise _refused(name, f"{name} of {known.title} is switched with true or false; it takes no value.")
    if flag.choices and not flag.many and isinstance(value, str | int) and str(value) not in flag.choices:
        near = difflib.get_close_matches(str(value), flag.choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(flag.choices)}."
        raise _refused(name, f"{name} of {known.title} cannot be {value}; {hint}")


def _spellings(name: str) -> Iterator[str]:
    """`max_num_seqs`, `max-num-seqs` and `--max-num-seqs` are one; so are aliases, and `a.b` sets a part of `a`."""
    bare = _plain(name).replace("_", "-")
    for option in (bare, bare.partition(".")[0]):
        yield f"--{option}"
        yield f"-{option}"


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _hint(name: str, options: Mapping[str, Flag]) -> str:
    known = [_plain(option) for option in options if option.startswith("--")]
    near = difflib.get_close_matches(_plain(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _refused(name: str, sentence: str) -> InvalidRequest:
    return InvalidRequest(sentence.replace("?.", "?"), param=f"engine_args.{name}")
