"""kill -9 of each process, under load, by its PID: what must go on goes on, what must come back comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from openai import OpenAIError

from tests.alive import is_alive
from tests.fleet import Fleet, eventually


class Load:
    """Streams that run one after the other on a few threads, and what became of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self.finished = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                stream = self._fleet.openai.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": "hello"}], max_tokens=32, stream=True
                )
                last = [chunk for chunk in stream if chunk.choices][-1]
                assert last.choices[0].finish_reason, "a stream was cut without a word"
                self.finished += 1
            except (OpenAIError, httpx.TransportError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.05)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        self.more()

    def more(self, count: int = 8) -> None:
        """Wait until `count` more streams have ended well."""
        goal = self.finished + count
        eventually(lambda: self.finished >= goal, 30)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def under_load(fleet: Fleet) -> Iterator[Load]:
    load = Load(fleet)
    load.start()
    try:
        yield load
    finally:
        load.stop()


@pytest.fixture
def serving(fleet: Fleet) -> Fleet:
    fleet.deploy(
        name="chat", model="anything", engine="sim", device="cpu", engine_args={"seconds_per_output_token": 0.005}
    )
    fleet.wait_ready("chat")
    return fleet


def pid_of(fleet: Fleet) -> int:
    pid: int = fleet.wait_ready("chat")[0]["pid"]
    return pid


def test_a_killed_engine_is_back_without_a_hand(serving: Fleet) -> None:
    with under_load(serving) as load:
        old = pid_of(serving)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: [r for r in serving.replicas("chat") if r["pid"] not in (None, old)], 30)
        serving.wait_ready("chat")
        load.more()
    assert serving.replicas("chat")[0]["restarts"] == 1
    assert not is_alive(old)


def test_a_killed_agent_costs_no_request_and_adopts_the_same_engine(serving: Fleet) -> None:
    with under_load(serving) as load:
        engine = pid_of(serving)
        agent = serving.workers["node-1"]
        agent.kill()
        agent.wait()
        load.more(16)
        serving.start_worker()
        load.more()
    assert load.failed == []
    assert pid_of(serving) == engine
    assert serving.replicas("chat")[0]["restarts"] == 0


def test_after_a_killed_serve_everything_is_as_it_was(serving: Fleet) -> None:
    before = serving.get("/v1/deployments")
    with under_load(serving) as load:
        engine = pid_of(serving)
        assert serving.serve is not None
        serving.serve.kill()
        serving.serve.wait()
        serving.start_serve()
        serving.wait_ready("chat")
        load.more()
    assert pid_of(serving) == engine
    after = serving.get("/v1/deployments")
    assert [(d["name"], d["uid"], d["generation"]) for d in after] == [
        (d["name"], d["uid"], d["generation"]) for d in before
    ]


def test_serve_and_agent_killed_together_still_find_the_engine(serving: Fleet) -> None:
    engine = pid_of(serving)
    assert serving.serve is not None
    for process in (serving.serve, serving.workers["node-1"]):
        process.kill()
        process.wait()
    serving.start_serve()
    serving.wait_ready("chat")  # its agent is still away
    serving.start_worker()
    assert pid_of(serving) == engine


def test_deletion_leaves_no_process_and_no_record(serving: Fleet) -> None:
    with under_load(serving) as load:
        engine = pid_of(serving)
        serving.delete("chat")
        eventually(lambda: not is_alive(engine), 10)
        load.stop()
    assert serving.get("/v1/deployments") == []
    assert serving.get("/v1/replicas") == []
