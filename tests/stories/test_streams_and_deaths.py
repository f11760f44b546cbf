"""An engine dies under 16 streams: every client hears of it, it is replaced, and nothing of the old one is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.alive import is_alive
from tests.broken_streams import BrokenStreams
from tests.fleet import Fleet, eventually


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Fleet]:
    """One engine on the only device, so its successor must wait until nothing of it is left."""
    with Fleet(tmp_path, worker="stall_seconds = 3\nsimulated_devices = 1\n").running() as fleet:
        fleet.deploy(
            name="chat", model="m", engine="sim", device="sim:0", engine_args={"seconds_per_output_token": 0.02}
        )
        fleet.wait_ready("chat")
        yield fleet


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


def telling(fleet: Fleet, *words: str) -> list[dict[str, Any]]:
    """The replicas whose message has all of these."""
    return [replica for replica in fleet.replicas("chat") if all(word in replica["message"] for word in words)]


@pytest.mark.parametrize("fault", [killed_core, stopped_core, killed_shim, stopped_shim])
def test_every_client_hears_and_the_engine_is_replaced(serving: Fleet, fault: Any) -> None:
    (before,) = serving.wait_ready("chat")
    engine = psutil.Process(before["pid"])
    old = [engine, *engine.children(recursive=True)]
    streams = BrokenStreams(serving, "chat", 5000)
    words = fault(engine)
    (told,) = eventually(lambda: telling(serving, words, "trying again"), 60)
    assert told["phase"] == "restarting" and told["endpoint"] is None
    for end in streams.all_ended(60):
        assert end.startswith("APIError"), end
    eventually(lambda: [r for r in serving.replicas("chat") if r["pid"] not in (None, before["pid"])], 60)
    (after,) = serving.wait_ready("chat")
    assert after["restarts"] == 1
    assert not [process.pid for process in old if is_alive(process.pid)]
    answer = serving.openai.completions.create(model="chat", prompt="hello", max_tokens=3)
    assert answer.choices[0].text
