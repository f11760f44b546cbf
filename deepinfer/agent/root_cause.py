"""Which line of an engine's log tells why it ended. Pure: lines in, a line out.

An engine of several processes prints its end several times: the worker that failed, the core that lost its worker, the
API side that lost its core. The deepest process tells most, and what it said first; the others only point at it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepinfer.fleet.launch import FAILURE_LINE

_LAST_LINES = 10_000  # an end prints a long traceback for every process and every open request
_OWN_LAST_LINES = 20  # of an engine that is one process
_PREFIX = re.compile(
    r"^(?:\((?P<role>[A-Za-z_]+)[^)]*\) )?(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \S+ \[[^\]]*\] )?"
)
_EXCEPTION = re.compile(r"^(\w+\.)*\w*(Error|Exception|Exit|Interrupt)(:|$)")
_DEATH = re.compile(r"died unexpectedly \(exit code: (?!0\))|^Fatal Python error|^terminate called|^Segmentation fault")
_FOLLOWS = re.compile(
    r"see (the )?(root cause|stack trace)|EngineDeadError|background process|^(\w+\.)*(CancelledError|SystemExit)\b"
    r"|RuntimeError: cancelled$",
    re.IGNORECASE,
)
_DEPTHS = ("worker", "enginecore")  # by how the role begins; deepest first


@dataclass(frozen=True, slots=True)
class _Line:
    depth: int
    text: str


def root_cause(lines: Sequence[str]) -> str | None:
    """The line that tells most about how the run ended, if one names an error."""
    parsed = [_parsed(line) for line in lines if line.strip()][-_LAST_LINES:]
    named = [at for at, line in enumerate(parsed) if _names(line.text)]
    causes = [at for at in named if not _FOLLOWS.search(parsed[at].text)]
    for depth in range(len(_DEPTHS)):
        deep = [at for at in causes if parsed[at].depth == depth]
        if deep:
            return _whole(parsed, deep[0])
    late = len(parsed) - _OWN_LAST_LINES
    last = [at for at in causes if at >= late]
    return _whole(parsed, last[-1]) if last else None


def last_error(lines: Sequence[str]) -> str | None:
    """The last line that names any error, also one that only points at another."""
    return next((text for line in lines[:-_LAST_LINES:-1] if _names(text := _parsed(line).text)), None)


def told_failure(lines: Sequence[str]) -> str | None:
    """What the shim itself said that its engine died of."""
    told = [line.strip() for line in lines if line.startswith(FAILURE_LINE)]
    return told[-1].removeprefix(FAILURE_LINE) if told else None


def _parsed(line: str) -> _Line:
    prefix = _PREFIX.match(line)
    role = ((prefix and prefix["role"]) or "").lower()
    depth = next((at for at, name in enumerate(_DEPTHS) if role.startswith(name)), len(_DEPTHS))
    return _Line(depth, line[prefix.end() if prefix else 0 :].rstrip())


def _names(text: str) -> bool:
    """An exception's own line, or the words of a process that died without one. Frames of a traceback are indented."""
    return bool(_EXCEPTION.match(text) or _DEATH.search(text))


def _whole(lines: Sequence[_Line], at: int) -> str:
    """pydantic says what is wrong one line later."""
    text = lines[at].text.strip()
    if re.search(r"validation errors? for", text) and at + 1 < len(lines):
        return f"{text}: {lines[at + 1].text.strip()}"
    return text
