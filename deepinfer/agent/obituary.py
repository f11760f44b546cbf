"""How an engine's end is told to people. Pure."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass

from deepinfer.agent.launching import Exit

CRASH_LOOP = 3
"""Failures in a row from which on it is called a loop."""


@dataclass(frozen=True, slots=True)
class End:
    """What is known of one end."""

    seen: Exit
    blame: str | None = None  # why the agent itself ended it
    told: str | None = None  # what the shim said its engine failed of

    @property
    def is_explained(self) -> bool:
        """More is known than that it ended."""
        return bool(self.told or self.blame or self.seen.reason or (self.seen.status or 0) < 0)


def how_it_ended(end: End) -> str:
    """A sentence without its full stop."""
    status = end.seen.status
    if end.seen.reason and (end.seen.is_sure or not end.blame):
        return end.seen.reason
    if end.told:
        return f"The engine failed: {end.told}"
    if end.blame:
        return end.blame
    if status is None:
        return "The engine's process ended"
    if status < 0:
        return f"The engine was killed by {signal.Signals(-status).name}"
    return f"The engine exited with status {status}"


def crashed(reason: str, failures_in_a_row: int, wait_seconds: float) -> str:
    """What a status says while the next try is waited for."""
    loop = f"crash loop: {failures_in_a_row} failures in a row; " if failures_in_a_row >= CRASH_LOOP else ""
    return f"{loop}{reason.rstrip('.')}; trying again {wait_seconds:.0f} s later."


def kept_from_starting(error: OSError) -> str:
    """By a file of the agent's own, or a program that is not there."""
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {where} cannot be written; make room there"
    return f"{where}: {error.strerror}" if error.strerror else str(error)


def with_log(text: str, replica: str, line: str) -> str:
    """`line`: what the log tells most with."""
    return f"{text.rstrip('.')} (`deepinfer logs {replica}` has more){f': {line}' if line else ''}"
