"""Waiting for a deployment, with its progress shown on stderr: a spinner on a terminal, else a line for each change.

stdout stays free for the result, so that `-o json` can be piped while a person watches.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deepinfer.cli.failures import OperationFailed
from deepinfer.cli.patience import spinner
from deepinfer.cli.server import Server
from deepinfer.cli.views import Outcome, Progress, View, progress_of

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LOOK_EVERY_SECONDS = 0.2
LASTS_SECONDS = {
    Outcome.READY: 0.0,
    Outcome.FAILED: 0.5,  # it may be told of an earlier run, whose worker is just looking again
    Outcome.REFUSED: 2.0,  # it may be older than the spec, or than the node that is just joining
}
LINE_EVERY_SECONDS = 10.0  # without a terminal, when only the numbers in a message change


class Display(Protocol):
    """Where progress is shown."""

    def show(self, sentence: str) -> None: ...


class Settling:
    """Decides when a deployment's progress is final: a bad outcome must last. One for each wait."""

    def __init__(self) -> None:
        self._outcome, self._since = Outcome.PENDING, 0.0

    def final(self, progress: Progress, now: float) -> bool:
        if progress.outcome is not self._outcome:
            self._outcome, self._since = progress.outcome, now
        return self._outcome in LASTS_SECONDS and now - self._since >= LASTS_SECONDS[self._outcome]


@dataclass(frozen=True)
class Look:
    """A deployment as it was seen, and what that means."""

    view: View
    progress: Progress


def look(server: Server, name: str) -> Look:
    """Ready means ready to be asked: the router follows a moment after the engine's word. Who only prefills is asked by
    nobody."""
    view = server.deployment(name)
    progress = progress_of(view)
    is_asked = view.get("role") != "prefill"
    if view["status"]["phase"] == "ready" and is_asked and not server.routes_to(name):
        progress = Progress(Outcome.PENDING, f"{name}: the router connects to it")
    return Look(view, progress)


def wait_until_ready(server: Server, name: str, timeout: float) -> View:
    """The deployment's view when it is ready; `OperationFailed` when it will not be, or not in time."""
    settling, deadline = Settling(), time.monotonic() + timeout
    with display() as shown:
        while True:
            seen = look(server, name)
            progress = seen.progress
            if settling.final(progress, time.monotonic()):
                require_success(name, progress)
                return seen.view
            if time.monotonic() >= deadline:
                raise OperationFailed(
                    f"{progress.sentence}; not ready after {timeout:g} s, and it goes on: "
                    f"`deepinfer describe {name}` shows how far it is."
                )
            shown.show(progress.sentence)
            time.sleep(LOOK_EVERY_SECONDS)


def wait_until_gone(server: Server, name: str, replica_ids: set[str], timeout: float) -> None:
    """Returns when none of these replicas is left; a new deployment of the same name has others."""
    deadline = time.monotonic() + timeout
    with display() as shown:
        while left := [r for r in server.replicas() if r["id"] in replica_ids]:
            first = left[0]
            where = first["node"] if first["node_alive"] else f"{first['node']}, which is not connected"
            sentence = f"{name}: {first['id']} stops on {where}"
            if time.monotonic() >= deadline:
                raise OperationFailed(
                    f"{sentence}; not gone after {timeout:g} s, and it goes on: "
                    "`deepinfer get replicas` shows what is left."
                )
            shown.show(sentence)
            time.sleep(LOOK_EVERY_SECONDS)


def require_success(name: str, progress: Progress) -> None:
    """Raises `OperationFailed` if the final progress is not a good one."""
    if progress.outcome is not Outcome.READY:
        raise OperationFailed(f"{progress.sentence.rstrip('.')}. `deepinfer describe {name}` shows more.")


@contextmanager
def display() -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with spinner() as bar:
        yield _Spinner(bar)


class _Spinner:
    def __init__(self, bar: Bar) -> None:
        self._bar, self._task = bar, bar.add_task("")

    def show(self, sentence: str) -> None:
        self._bar.update(self._task, description=sentence, refresh=True)


class _Lines:
    """A log keeps every line: one for each new sentence, and now and then one whose numbers changed."""

    def __init__(self) -> None:
        self._last, self._at = "", float("-inf")

    def show(self, sentence: str) -> None:
        late = time.monotonic() - self._at >= LINE_EVERY_SECONDS
        if _wording(sentence) != _wording(self._last) or (late and sentence != self._last):
            print(sentence, file=sys.stderr, flush=True)
            self._last, self._at = sentence, time.monotonic()


def _wording(sentence: str) -> str:
    return re.sub(r"\d+([.,]\d+)*", "#", sentence)
