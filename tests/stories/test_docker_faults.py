"""What Docker itself can suffer under running engines: killed, restarted, hanging, away. Each Docker is our own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.boxed_fleet import BoxedFleet, boxed_fleet
from tests.docker_engine import DockerEngine
from tests.fleet import eventually

NO_LIVE_RESTORE = "a restart of Docker ends its engines"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoxedFleet]:
    """Its Docker has no live restore, which is the default."""
    with DockerEngine() as engine, boxed_fleet(tmp_path_factory.mktemp("fleet"), engine) as fleet:
        fleet.boxed(replicas=2)
        fleet.wait_ready("boxed")
        yield fleet
        fleet.delete("boxed")


def node(fleet: BoxedFleet) -> dict[str, str]:
    (found,) = fleet.get("/v1/nodes")
    containers: dict[str, str] = found["containers"]
    return containers


def pids(fleet: BoxedFleet) -> list[int]:
    return sorted(container.attrs["State"]["Pid"] for container in fleet.containers())


def test_a_docker_without_live_restore_is_warned_about(fleet: BoxedFleet) -> None:
    assert node(fleet)["version"] and NO_LIVE_RESTORE in node(fleet)["warning"]


def test_a_stream_whose_container_is_killed_goes_on_in_another(fleet: BoxedFleet) -> None:
    before = fleet.wait_ready("boxed")

    def tales(*, kill: bool) -> list[tuple[str, int]]:
        """Of two streams at once: one in each container."""
        how: Any = {"max_tokens": 300, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        asked: list[Any] = [[{"role": "user", "content": f"Tell me tale {number}."}] for number in range(2)]
        ignore = {"ignore_eos": True}
        create = fleet.openai.chat.completions.create
        streams = [create(model="boxed", messages=each, extra_body=ignore, **how) for each in asked]
        chunks = [[next(stream), next(stream)] for stream in streams]
        if kill:
            os.kill(before[0]["pid"], signal.SIGKILL)
        for stream, got in zip(streams, chunks, strict=True):
            got += stream
        texts = ["".join(chunk.choices[0].delta.content or "" for chunk in got if chunk.choices) for got in chunks]
        return [(text, got[-1].usage.completion_tokens) for text, got in zip(texts, chunks, strict=True)]

    undisturbed = tales(kill=False)
    assert tales(kill=True) == undisturbed
    assert "a stream goes on on another replica" in fleet.log("serve.log")
    eventually(lambda: before[0]["pid"] not in [replica["pid"] for replica in fleet.wait_ready("boxed")], 60)


def test_a_docker_that_hangs_is_unknown_and_its_engines_answer_on(fleet: BoxedFleet) -> None:
    before = fleet.wait_ready("boxed")
    fleet.engine.pause()
    try:
        eventually(lambda: "unknown" in node(fleet)["trouble"], 6)
        assert [fleet.said() for _ in range(4)]
        assert [replica["pid"] for replica in fleet.wait_ready("boxed")] == [replica["pid"] for replica in before]
        assert fleet.message().count("RuntimeUnreachable: ") == 2
    finally:
        fleet.engine.resume()
    eventually(lambda: not node(fleet)["trouble"], 10)
    assert fleet.wait_ready("boxed") == before
    assert len(fleet.containers()) == 2


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_docker_that_ends_its_containers_gets_each_back_once(fleet: BoxedFleet, end: str) -> None:
    before = fleet.wait_ready("boxed")
    restarts = {replica["id"]: replica["restarts"] for replica in before}
    getattr(fleet.engine, end)()
    fleet.engine.start()
    fleet.told("RuntimeRestart: Docker was stopped", seconds=20)
    after = fleet.others_ready(before)
    assert {r["id"]: r["restarts"] for r in after} == {name: count + 1 for name, count in restarts.items()}
    assert len(fleet.containers()) == 2 and fleet.said()


def test_an_agent_that_comes_back_while_docker_hangs_starts_nothing_twice(fleet: BoxedFleet) -> None:
    before = fleet.wait_ready("boxed")
    worker = fleet.workers["node-1"]
    worker.kill()
    worker.wait()
    fleet.engine.pause()
    try:
        fleet.start_worker()
        assert fleet.said()
        time.sleep(3)  # nothing tells that nothing happens
        assert fleet.said()
    finally:
        fleet.engine.resume()
    after = fleet.wait_ready("boxed")
    assert [replica["pid"] for replica in after] == [replica["pid"] for replica in before]
    assert len(fleet.containers()) == 2


def test_what_is_deleted_while_docker_hangs_is_gone_when_docker_says_so(fleet: BoxedFleet) -> None:
    """Also for an agent that has not seen its container yet."""
    before = fleet.wait_ready("boxed")
    eventually(lambda: not node(fleet)["trouble"], 10)
    fleet.boxed("second")
    (second,) = fleet.wait_ready("second")
    worker = fleet.workers["node-1"]
    worker.kill()
    worker.wait()
    fleet.engine.pause()
    try:
        fleet.start_worker()
        assert fleet.http.delete("/v1/deployments/second").status_code == 202
        eventually(lambda: [replica["intent"] for replica in fleet.replicas("second")] == ["drain"])
        time.sleep(2)  # nothing tells that nothing happens
        assert [replica["pid"] for replica in fleet.replicas("second")] == [second["pid"]]
    finally:
        fleet.engine.resume()
    eventually(lambda: not fleet.replicas("second"), 60)
    assert len(fleet.containers()) == 2
    assert [replica["pid"] for replica in fleet.wait_ready("boxed")] == [replica["pid"] for replica in before]


def test_without_docker_a_new_deployment_has_no_place_and_says_why(fleet: BoxedFleet) -> None:
    before = fleet.wait_ready("boxed")
    fleet.engine.kill()
    eventually(lambda: node(fleet)["trouble"], 10)
    fleet.boxed("second", image="sim-vllm:1")
    refusals = eventually(lambda: fleet.get("/v1/deployments/second")["refusals"])
    assert "cannot run containers" in refusals["node-1"] and "start Docker" in refusals["node-1"]
    fleet.engine.start()
    fleet.wait_ready("second", as_foreseen=False)  # there is a Docker by now
    fleet.delete("second")
    fleet.others_ready(before)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_live_restore_keeps_the_processes_and_the_agent_finds_them(fleet: BoxedFleet, end: str) -> None:
    if NO_LIVE_RESTORE in node(fleet)["warning"]:
        fleet.delete("boxed")  # by now so often restarted that its next start would wait a minute
        fleet.engine.stop()
        fleet.engine.configure(live_restore=True)
        fleet.engine.start()
        eventually(lambda: not node(fleet)["warning"])
        fleet.boxed(replicas=2)
    before = fleet.wait_ready("boxed")
    assert not node(fleet)["warning"]
    getattr(fleet.engine, end)()
    assert fleet.said()
    eventually(lambda: node(fleet)["trouble"], 10)
    fleet.engine.start()
    eventually(lambda: not node(fleet)["trouble"], 5)
    assert fleet.wait_ready("boxed") == before and pids(fleet) == sorted(replica["pid"] for replica in before)
    victim = next(c for c in fleet.containers() if c.attrs["State"]["Pid"] == before[0]["pid"])
    victim.kill()  # its events are heard again
    fleet.told("The engine was killed by SIGKILL")
    eventually(lambda: before[0]["pid"] not in [replica["pid"] for replica in fleet.wait_ready("boxed")])
