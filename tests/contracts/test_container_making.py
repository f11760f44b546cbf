"""What of the node a container has in effect: folders, limits, devices, its user, its variables; what it never has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deepinfer.agent.containers.device_access import DeviceAccess
from deepinfer.agent.containers.failures import ContainerRefused, MountRefused
from deepinfer.fleet.resources import Placement
from tests.docker_images import sim_image
from tests.program_nodes import ContainerNode, tell

SLEEPS = "import time; time.sleep(600)"
EFFECTS = """
import json, os, resource
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(json.dumps({
    "uid": status["Uid"].split()[0],
    "gid": status["Gid"].split()[0],
    "groups": status["Groups"].split(),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "sizes": resource.getrlimit(resource.RLIMIT_FSIZE),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "oom": open("/proc/1/oom_score_adj").read().strip(),
    "env": dict(os.environ),
}))
"""


async def effects(node: ContainerNode, **docker: Any) -> dict[str, Any]:
    engine = await node.start(SLEEPS, **docker)
    found: dict[str, Any] = json.loads(node.python(engine, EFFECTS))
    return found


async def test_limits_are_in_effect(node: ContainerNode) -> None:
    options = {"ulimits": {"nofile": 4321, "fsize": -1}, "shm_size": "24m", "cpus": 1.5, "memory": "128m"}
    seen = await effects(node, **options)
    assert (seen["files"], seen["sizes"], seen["shm"]) == ([4321, 4321], [-1, -1], 24 << 20)
    assert int(seen["oom"]) > 0
    (engine,) = await node.launcher.running()
    host = node.docker.docker.containers.get(engine.seen.id).attrs["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (1_500_000_000, 128 << 20, 128 << 20)
    assert limit_in_its_cgroup(engine.pid) == 128 << 20


def limit_in_its_cgroup(pid: int) -> int:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, folder in lines:
        if "memory" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{folder}/memory.limit_in_bytes").read_text())
    return int(Path(f"/sys/fs/cgroup{lines[-1][2]}/memory.max").read_text())


async def test_the_host_s_shared_memory_is_had_on_demand(node: ContainerNode) -> None:
    seen = await effects(node, ipc="host")
    shared = os.statvfs("/dev/shm")  # noqa: S108  # where it is on any Linux
    assert seen["shm"] == shared.f_blocks * shared.f_frsize


async def test_it_is_never_privileged_and_gains_nothing(node: ContainerNode) -> None:
    seen = await effects(node)
    assert seen["no_new_privileges"] == "1"
    assert not seen["capabilities"] & (1 << 21), "CAP_SYS_ADMIN"
    (engine,) = await node.launcher.running()
    assert node.docker.docker.containers.get(engine.seen.id).attrs["HostConfig"]["Privileged"] is False


async def test_it_runs_as_the_user_that_is_wanted(node: ContainerNode) -> None:
    seen = await effects(node, user="1234:5678")
    assert (seen["uid"], seen["gid"]) == ("1234", "5678")


async def test_it_has_its_own_variables_and_no_secrets_of_the_worker_s(node: ContainerNode) -> None:
    wanted = node.wanted(image=sim_image(node.docker), spec={"env": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}})
    engine = await node.run(wanted)
    variables = json.loads(node.python(engine, EFFECTS))["env"]
    assert {"HF_TOKEN", "MY_API_KEY", "TOKENIZERS_PARALLELISM"}.isdisjoint(variables)
    assert (variables["OMP_NUM_THREADS"], variables["HF_HUB_OFFLINE"]) == ("1", "0")
    assert variables["VLLM_API_KEY"] == engine.seen.api_key


async def test_it_sees_its_model_and_its_mounts_and_writes_only_where_it_may(node: ContainerNode) -> None:
    (node.model / "config.json").write_text("{}")
    for name in ("read", "write"):
        (node.data / name).mkdir()
    mounts = (f"{node.data}/read:/read", f"{node.data}/write:/write:rw")
    engine = await node.start(SLEEPS, mounts=mounts)
    assert node.python(engine, f"print(open('{node.model}/config.json').read())") == "{}\n"
    node.python(engine, "open('/write/new', 'w').write('from inside')")
    assert (node.data / "write/new").read_text() == "from inside"
    for place in ("/read", str(node.model)):
        with pytest.raises(AssertionError, match="Read-only file system"):
            node.python(engine, f"open('{place}/new', 'w')")


async def test_a_model_made_of_links_is_whole_inside(node: ContainerNode, tmp_path: Path) -> None:
    """As the hub's cache is: snapshots link to blobs."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_text("weights")
    (node.model / "model.safetensors").symlink_to("../blobs/abc")
    engine = await node.start(SLEEPS)
    assert node.python(engine, f"print(open('{node.model}/model.safetensors').read())") == "weights\n"


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ("{socket}:/docker.sock", "would give the container Docker's own socket"),
        ("{socket_folder}:/x:ro", "would give the container Docker's own socket"),
        ("{above}:/x", "would give the container Docker's own socket"),
        ("{data}/link:/x", "would give the container Docker's own socket"),
        ("{home}:/x", "is below no folder that this node lets containers mount ({data}); container_mounts in its"),
        ("/etc:/x", "/etc is below no folder that this node lets containers mount"),
        ("{data}/none:/x", "{data}/none is not on this node; make it"),
    ],
)
async def test_a_mount_that_is_not_allowed_is_refused(node: ContainerNode, mount: str, words: str) -> None:
    socket = node.docker.socket
    (node.data / "link").symlink_to(socket)
    names = {"data": node.data, "home": node.home}
    names |= {"socket": socket, "socket_folder": socket.parent, "above": socket.parents[1]}
    with pytest.raises(MountRefused) as refused:
        await node.launcher.prepared(node.wanted(mounts=(mount.format(**names),)), tell)
    assert words.format(**names) in str(refused.value)


async def test_a_model_whose_links_lead_to_docker_s_socket_is_refused(node: ContainerNode) -> None:
    (node.model / "weights").symlink_to(node.docker.socket.with_name("daemon.json"))
    with pytest.raises(MountRefused, match="would give the container Docker's own socket"):
        await node.start(SLEEPS)
    assert node.left() == []


def with_devices(wanted: Placement, *devices: str) -> Placement:
    return wanted.model_copy(update={"devices": devices})


def a_table_of(monkeypatch: pytest.MonkeyPatch, table: Mapping[str, DeviceAccess]) -> None:
    monkeypatch.setattr("deepinfer.agent.containers.launcher.known_access", lambda: table)


async def test_it_has_the_devices_it_was_given_and_no_others(
    node: ContainerNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (driver := tmp_path / "driver").mkdir()
    access = DeviceAccess(
        devices=("/dev/tty{id}", "/dev/full"),
        groups=("tty", "no-such-group"),
        mounts=(str(driver), "/no/such/driver"),
        env={"VISIBLE": "{ids}"},
    )
    a_table_of(monkeypatch, {"tt": access})
    engine = await node.run(with_devices(node.wanted(), "tt:3", "tt:5"))
    told = json.loads(node.python(engine, "import json, os; print(json.dumps(sorted(os.listdir('/dev'))))"))
    assert {"tty3", "tty5", "full"} <= set(told) and "tty4" not in told
    assert node.python(engine, "open('/dev/tty3', 'wb', buffering=0); print('opened')") == "opened\n"
    seen = json.loads(node.python(engine, EFFECTS))
    assert seen["env"]["VISIBLE"] == "3,5"
    assert "5" in seen["groups"]  # tty's number
    assert node.python(engine, f"import os; print(os.path.isdir('{driver}'))") == "True\n"


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:0", 'could not select device driver "nvidia".*install the NVIDIA Container Toolkit on this node'),
        ("gcu:0", "install the vendor's container runtime on this node"),
        ("npu:0", "/dev/davinci0"),
    ],
)
async def test_devices_that_the_node_has_not_are_told_with_the_next_step(
    node: ContainerNode, device: str, words: str
) -> None:
    with pytest.raises(ContainerRefused, match=words):
        await node.run(with_devices(node.wanted(), device))
    assert node.left() == []
