"""An engine dies under 16 streams: every client hears of it, it is replaced, and nothing of the old one is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAIError

from tests.fleet import Fleet, eventually

STREAMS = 16


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Fleet]:
    """One engine on the only device, so its successor must wait until nothing of it is left."""
    fleet = Fleet(tmp_path, worker="stall_seconds = 3\nsimulated_devices = 1\n")
    try:
        fleet.start_serve()
        fleet.start_worker()
        fleet.deploy(
            name="chat", model="m", engine="sim", device="sim:0", engine_args={"seconds_per_output_token": 0.02}
        )
        fleet.wait_ready("chat")
        yield fleet
    finally:
        fleet.close()


class Streams:
    """Clients whose answers are far from done when something happens, and what became of each."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.begun = 0
        self.ends: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(STREAMS)]
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.begun == STREAMS, 60)

    def _run(self) -> None:
        begun = False
        try:
            stream = self._fleet.openai.completions.create(
                model="chat", prompt="hello", max_tokens=5000, stream=True, extra_body={"ignore_eos": True}
            )
            finish = None
            for chunk in stream:
                if not begun:
                    begun, self.begun = True, self.begun + 1
                finish = chunk.choices[0].finish_reason or finish
            self.ends.append("whole" if finish else "cut without a word")
        except (OpenAIError, httpx.TransportError) as error:
            self.ends.append(f"{type(error).__name__}: {error}")

    def all_ended(self, seconds: float) -> list[str]:
        eventually(lambda: len(self.ends) == STREAMS, seconds)
        return self.ends


def killed_core(engine: psutil.Process) -> str:
    (core,) = engine.children()
    core.kill()
    return f"its core (process {core.pid}) was killed by SIGKILL"


def stopped_core(engine: psutil.Process) -> str:
    (core,) = engine.children()
    core.suspend()
    return "it computed nothing for"


def killed_shim(engine: psutil.Process) -> str:
    engine.kill()
    return "killed by SIGKILL"


def stopped_shim(engine: psutil.Process) -> str:
    os.kill(engine.pid, signal.SIGSTOP)
    return "It did not answer for"


@pytest.mark.parametrize("fault", [killed_core, stopped_core, killed_shim, stopped_shim])
def test_every_client_hears_and_the_engine_is_replaced(serving: Fleet, fault: Any) -> None:
    (before,) = serving.wait_ready("chat")
    engine = psutil.Process(before["pid"])
    old = [engine, *engine.children(recursive=True)]
    streams = Streams(serving)
    words = fault(engine)
    (told,) = eventually(lambda: [r for r in serving.replicas("chat") if words in r["message"]], 60)
    assert told["phase"] == "restarting"
    for end in streams.all_ended(60):
        assert end.startswith("APIError"), end
    eventually(lambda: [r for r in serving.replicas("chat") if r["pid"] not in (None, before["pid"])], 60)
    (after,) = serving.wait_ready("chat")
    assert after["restarts"] == 1
    assert not [process.pid for process in old if process.is_running()]
    answer = serving.openai.completions.create(model="chat", prompt="hello", max_tokens=3)
    assert answer.choices[0].text
