"""How calls reach an engine: as frames through its shim (`call_stream.py`) or past it, by HTTP (`http_upstream.py`).

GetInfo tells which of them it is. Both give the same `Answer`.
"""

from __future__ import annotations

from typing import Protocol

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.frames import EngineCall


def failed(target: str, reason: str) -> str:
    """What an open answer is told when the engine at `target` fails."""
    return f"The engine at {target} failed: {reason.rstrip('.')}."


class Upstream(Protocol):
    """Of one engine, for all calls of a client."""

    @property
    def usable(self) -> bool:
        """Whether the next call may go this way before the shim was asked again who is there."""

    def ask(self, call: EngineCall) -> Answer | None:
        """Send it now; its answer fills as the engine makes it. None if there is no connection for it yet."""

    async def call(self, call: EngineCall, asked: Answer | None = None) -> Answer:
        """The answer, once its head is there; `EngineFailed` when the engine fails before that. `asked` it already."""

    def watch_ended(self, failure: str) -> None:
        """The shim's state is not heard any more; `failure` is why, "" when it was not a failure."""

    def engine_failed(self, message: str) -> None:
        """The shim said so."""

    def close(self, message: str) -> None:
        """At once; every open answer fails with this message."""
