"""Models in containers, on a real Docker engine: from a POST to an answer, and through all that can happen to them.

The image has the simulated engine where vllm/vllm-openai has vLLM; the real vLLM is in test_vllm_container.py, what
Docker itself can suffer in test_docker_faults.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.alive import is_alive
from tests.boxed_fleet import BoxedFleet, boxed_fleet
from tests.docker_engine import DockerEngine
from tests.docker_images import exits_image, no_server_image, web_image
from tests.fleet import eventually

SLOW = {"seconds_per_output_token": 0.05}


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory, docker_engine: DockerEngine) -> Iterator[BoxedFleet]:
    home = tmp_path_factory.mktemp("fleet")
    (home / "data").mkdir()
    with boxed_fleet(home, docker_engine, worker=f'container_mounts = ["{home}/data"]\n') as fleet:
        yield fleet


@pytest.fixture
def fleet(one_node: BoxedFleet) -> Iterator[BoxedFleet]:
    """Without deployments, before and after."""
    yield one_node
    for deployment in one_node.get("/v1/deployments"):
        one_node.delete(deployment["name"])
    assert one_node.containers() == []
    assert one_node.sidecars() == []


def test_from_a_post_to_a_streamed_answer(fleet: BoxedFleet) -> None:
    fleet.boxed(engine_args=SLOW)
    (replica,) = fleet.wait_ready("boxed")
    (container,) = fleet.containers()
    stream = fleet.openai.completions.create(model="boxed", prompt="Hello", max_tokens=8, stream=True)
    chunks = list(stream)
    assert len(chunks) >= 4 and chunks[-1].choices[0].finish_reason == "length"
    assert container.labels["deepinfer.placement"] == replica["id"]
    assert container.labels["deepinfer.epoch"] == str(replica["epoch"])
    assert container.attrs["State"]["Pid"] == replica["pid"]
    host = container.attrs["HostConfig"]
    assert (host["Privileged"], host["RestartPolicy"]["Name"], host["NetworkMode"]) == (False, "no", "host")
    assert host["SecurityOpt"] == ["no-new-privileges"]
    mounts = {mount["Destination"]: mount["RW"] for mount in container.attrs["Mounts"]}
    assert mounts[str(fleet.model)] is False
    assert not any("docker.sock" in mount["Source"] for mount in container.attrs["Mounts"])


def test_a_delete_right_after_its_start_leaves_no_container(fleet: BoxedFleet) -> None:
    fleet.boxed()
    assert eventually(fleet.containers)
    fleet.delete("boxed")
    assert fleet.containers() == []


def test_a_native_and_a_boxed_model_side_by_side(fleet: BoxedFleet) -> None:
    fleet.boxed()
    fleet.deploy(name="native", model="org/other", engine="sim", device="cpu")
    fleet.wait_ready("native")
    fleet.wait_ready("boxed")
    assert {model.id for model in fleet.openai.models.list()} >= {"boxed", "native", "org/model", "org/other"}
    assert fleet.said("native") and fleet.said("boxed") and fleet.said("org/model")


def test_a_bridge_network_and_what_the_spec_asks_for(fleet: BoxedFleet) -> None:
    fleet.boxed(
        env={"MY_SETTING": "7"},
        docker={
            "network": "bridge",
            "memory": "1g",
            "cpus": 1.5,
            "shm_size": "64m",
            "mounts": [f"{fleet.home}/data:/data"],
        },
    )
    fleet.wait_ready("boxed")
    assert fleet.said()
    (container,) = fleet.containers()
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["ShmSize"]) == (1 << 30, 1_500_000_000, 64 << 20)
    assert "MY_SETTING=7" in container.attrs["Config"]["Env"]
    published = container.attrs["NetworkSettings"]["Ports"]["8000/tcp"]
    assert [entry["HostIp"] for entry in published] == ["127.0.0.1"]


def test_an_agent_killed_leaves_the_container_and_its_successor_adopts_it(fleet: BoxedFleet) -> None:
    fleet.boxed()
    (before,) = fleet.wait_ready("boxed")
    worker = fleet.workers["node-1"]
    worker.kill()
    worker.wait()
    assert fleet.said()
    fleet.start_worker()
    (after,) = fleet.wait_ready("boxed")
    assert (after["pid"], after["epoch"], after["restarts"]) == (before["pid"], before["epoch"], 0)
    assert "adopted boxed" in fleet.log("node-1.log")
    assert fleet.said()


def test_a_container_removed_by_hand_is_replaced(fleet: BoxedFleet) -> None:
    fleet.boxed()
    before = fleet.wait_ready("boxed")
    fleet.containers()[0].remove(force=True)
    fleet.told("ContainerRemoved: somebody removed its container")
    (after,) = fleet.others_ready(before)
    assert (after["id"], after["restarts"]) == (before[0]["id"], 1)
    assert fleet.said()


def test_a_killed_sidecar_is_mended_and_no_stream_notices(fleet: BoxedFleet) -> None:
    fleet.boxed(engine_args=SLOW)
    (before,) = fleet.wait_ready("boxed")
    stream = fleet.openai.completions.create(model="boxed", prompt="Hello", max_tokens=60, stream=True)
    assert next(iter(stream)).choices
    (sidecar,) = fleet.sidecars()
    sidecar.kill()
    assert list(stream)[-1].choices[0].finish_reason
    (after,) = fleet.wait_ready("boxed")
    assert fleet.said()
    assert [process.pid for process in fleet.sidecars()] != [sidecar.pid]
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)


def test_a_killed_server_comes_back(fleet: BoxedFleet) -> None:
    fleet.boxed()
    before = fleet.wait_ready("boxed")
    os.kill(before[0]["pid"], signal.SIGKILL)
    fleet.told("The engine was killed by SIGKILL")
    (after,) = fleet.others_ready(before)
    assert after["restarts"] == 1 and not is_alive(before[0]["pid"])
    assert len(fleet.containers()) == 1


@pytest.mark.parametrize(
    ("image", "body", "words"),
    [
        ("no/such:image", {}, "ImageMissing: image no/such:image is not on this node and cannot be pulled"),
        (None, {"model_path": "/no/such/model"}, "model_path /no/such/model does not exist on this node"),
        (exits_image, {}, "RuntimeError: no device of this kind is supported"),
        (no_server_image, {}, "ImageUnusable: the image has no vLLM server to start"),
        (web_image, {}, "use an image that serves vLLM's OpenAI API"),
        (None, {"docker": {"memory": "24m"}}, "OOMKilled: the kernel killed it for its memory; its limit is 24 MiB"),
        (None, {"docker": {"mounts": ["/var/run:/x"]}}, "MountRefused: "),
        (None, {"engine_args": {"no_such_flag": 1}}, "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_cannot_run_says_why_within_seconds_and_is_not_tried_hot(
    fleet: BoxedFleet, image: Any, body: dict[str, Any], words: str
) -> None:
    fleet.boxed(image=image(fleet.engine) if callable(image) else image, **body)
    fleet.told(words, seconds=10)
    (replica,) = fleet.replicas("boxed")
    assert replica["restarts"] <= 3
    assert words in fleet.get("/v1/deployments/boxed")["status"]["message"]
