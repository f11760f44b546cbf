"""Two stand-in engines (engine.c), which answer at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gateway.process_tree import started
from tests.fleet import free_port

MODEL = "bench-model"
CHUNKS = 32
"""Of a stream, without the [DONE]."""


@dataclass(frozen=True)
class Engines:
    """Their ports on this machine."""

    ports: tuple[int, ...]

    def answer(self, chunks: int = CHUNKS, pace_ms: float = 0) -> None:
        """How they stream from now on: that many chunks, one in each `pace_ms`."""
        self._ask(f"/set?chunks={chunks}&pace={pace_ms}")

    def streams(self) -> list[dict[str, Any]]:
        """How many each has running, and when it last saw one hung up on."""
        return [answer.json() for answer in self._ask("/streams")]

    def last_hang_up(self) -> float:
        """Returns when no stream runs any more."""
        seen = self.streams()
        while any(told["running"] for told in seen):
            time.sleep(0.02)  # another process: there is no event to wait for
            seen = self.streams()
        return max(float(told["last_hang_up"]) for told in seen)

    def _ask(self, path: str) -> list[httpx.Response]:
        return [httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False) for port in self.ports]


@contextmanager
def two_engines(program: Path, home: Path, cores: frozenset[int]) -> Iterator[Engines]:
    ports = (free_port(), free_port())
    with ExitStack() as stack:
        for port in ports:
            command = (program, str(port), MODEL, str(CHUNKS), "0")
            tree = stack.enter_context(started(command, home / f"engine-{port}.log", cores))
            while not tree.last_words() and tree.is_running():
                time.sleep(0.01)
        yield Engines(ports)
