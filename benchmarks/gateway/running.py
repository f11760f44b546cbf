"""A gateway that runs, and what one is started with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.gateway.cores import Cores
from benchmarks.gateway.engines import Engines
from benchmarks.gateway.process_tree import ProcessTree
from deepinfer.fleet.errors import DeepinferError

_START_SECONDS = 90.0
NOTHING: Mapping[str, str] = {}


class CannotRun(DeepinferError):
    """This peer cannot be had or does not start here."""


@dataclass(frozen=True)
class Site:
    """Where gateways run: a folder of the run, one that is kept, and the engines behind all of them."""

    home: Path
    cache: Path
    cores: Cores
    engines: Engines

    @property
    def engine_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines.ports]


@dataclass(frozen=True)
class Gateway:
    """`processes` is what its cost is taken from; None for the engines themselves."""

    name: str
    port: int
    processes: ProcessTree | None = None
    token: str = ""  # the API key that is sent with every request
    has_own_engines: bool = False  # then the stand-ins' pace is not theirs


Start = Callable[[Site], AbstractContextManager[Gateway]]


def answers(
    tree: ProcessTree,
    url: str,
    holds: Callable[[httpx.Response], bool] = lambda _: True,
    headers: Mapping[str, str] = NOTHING,
) -> None:
    """Returns when `url` answers 200 and what it says holds. Raises `CannotRun`."""
    deadline = time.monotonic() + _START_SECONDS
    while tree.is_running() and time.monotonic() < deadline:
        try:
            answer = httpx.get(url, headers=headers, trust_env=False, timeout=5)
            if answer.status_code == 200 and holds(answer):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # another process: there is no event to wait for
    raise CannotRun(f"it was not ready within {_START_SECONDS:.0f} s, or ended: {tree.last_words()}")
