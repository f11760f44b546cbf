"""What a container is made of, for what is wanted: its devices, its folders, its limits, its labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepinfer.agent.containers.creation import Making, container_name, creation, mark_in
from deepinfer.agent.containers.device_access import DeviceAccess, access_to, known_access
from deepinfer.agent.containers.mounts import model_mounts
from deepinfer.agent.containers.server_command import Command
from deepinfer.agent.launching import Mark
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.spec import DockerOptions

MARK = Mark("chat-aaaaa-0", 3, "0123456789abcdef")
ACCESS: dict[str, tuple[tuple[str, ...], DeviceAccess]] = {
    "cuda": (("cuda:0", "cuda:2"), DeviceAccess(request="nvidia", request_ids=("0", "2"))),
    "rocm": (
        ("rocm:1", "rocm:3"),
        DeviceAccess(
            devices=("/dev/kfd", "/dev/dri"),
            groups=("video", "render"),
            security=("seccomp=unconfined",),
            env={"HIP_VISIBLE_DEVICES": "1,3"},
        ),
    ),
    "npu": (
        ("npu:0", "npu:7"),
        DeviceAccess(
            devices=("/dev/davinci0", "/dev/davinci7", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
            mounts=(
                "/usr/local/dcmi",
                "/usr/local/bin/npu-smi",
                "/usr/local/Ascend/driver/lib64",
                "/usr/local/Ascend/driver/version.info",
                "/etc/ascend_install.info",
            ),
        ),
    ),
    "xpu": (
        ("xpu:0",),
        DeviceAccess(devices=("/dev/dri",), groups=("video", "render"), env={"ZE_AFFINITY_MASK": "0"}),
    ),
    "mlu": (
        ("mlu:2", "mlu:4"),
        DeviceAccess(
            devices=("/dev/cambricon_ctl", "/dev/cambricon_dev2", "/dev/cambricon_dev4"), mounts=("/usr/bin/cnmon",)
        ),
    ),
    "gcu": (("gcu:5", "gcu:6"), DeviceAccess(runtime="enflame", env={"ENFLAME_VISIBLE_DEVICES": "5,6"})),
    "musa": (("musa:0",), DeviceAccess(runtime="mthreads", env={"MTHREADS_VISIBLE_DEVICES": "0"})),
    "dcu": (
        ("dcu:0", "dcu:1"),
        DeviceAccess(
            devices=("/dev/kfd", "/dev/mkfd", "/dev/dri"),
            groups=("video",),
            mounts=("/opt/hyhal",),
            security=("seccomp=unconfined",),
            env={"HIP_VISIBLE_DEVICES": "0,1"},
        ),
    ),
    "kunlun": (("kunlun:0", "kunlun:1"), DeviceAccess(devices=("/dev/xpu0", "/dev/xpu1", "/dev/xpuctrl"))),
}
"""Every kind that deepinfer knows: what is asked for, and what the container gets."""


def test_every_known_kind_is_in_the_table() -> None:
    assert set(ACCESS) == set(known_access())


@pytest.mark.parametrize("kind", ACCESS)
def test_devices_of_a_kind(kind: str) -> None:
    devices, access = ACCESS[kind]
    assert access_to(devices, known_access()) == access


def test_the_cpu_is_no_device_and_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    assert access_to(("cpu",), known_access()) == DeviceAccess()
    assert access_to((), known_access()) == DeviceAccess()
    with pytest.raises(EngineWillNotStart, match=r"of kind tpu; configs/container_devices\.toml knows cuda"):
        access_to(("tpu:0",), known_access())


MAKING = Making(image="sha256:1", mark=MARK, command=Command(None, ("/models/m",)), port=8123, api_key="key")


def made(making: Making = MAKING, **docker: Any) -> dict[str, Any]:
    return creation(making, DockerOptions.model_validate(docker))


@pytest.mark.parametrize("access", [DeviceAccess(), *(access for _, access in ACCESS.values())])
@pytest.mark.parametrize("docker", [{}, {"network": "bridge", "ipc": "host", "user": "0", "memory": "1g"}])
def test_it_is_never_privileged_and_nothing_but_the_agent_restarts_it(
    access: DeviceAccess, docker: dict[str, Any]
) -> None:
    wanted = made(replace(MAKING, access=access), **docker)
    assert not {"privileged", "cap_add", "pid_mode", "volumes", "auto_remove"} & set(wanted)
    assert wanted["security_opt"] == ["no-new-privileges", *access.security]
    assert wanted["restart_policy"] == {"Name": "no"}
    assert not any("docker.sock" in str(mount) for mount in wanted["mounts"])


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        ({}, {"network_mode": "host", "ipc_mode": "private", "shm_size": "8g"}),
        ({"ipc": "host"}, {"ipc_mode": "host", "shm_size": None}),
        ({"shm_size": "1g"}, {"ipc_mode": "private", "shm_size": "1g"}),
        ({"memory": "24g"}, {"mem_limit": "24g", "memswap_limit": "24g"}),
        ({}, {"mem_limit": None, "memswap_limit": None, "nano_cpus": None, "user": None, "ulimits": []}),
        ({"cpus": 0.5}, {"nano_cpus": 500_000_000}),
        ({"user": "1000:1000"}, {"user": "1000:1000"}),
        ({"ulimits": {"memlock": -1}}, {"ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}]}),
        ({"network": "bridge"}, {"network": "bridge", "ports": {"8000/tcp": ("127.0.0.1", None)}}),
        ({"network": "mine"}, {"network": "mine", "ports": {"8000/tcp": ("127.0.0.1", None)}}),
    ],
)
def test_options_become_what_docker_calls_them(docker: dict[str, Any], expected: dict[str, Any]) -> None:
    wanted = made(**docker)
    assert {name: wanted[name] for name in expected} == expected
    assert ("network_mode" in wanted) != ("network" in wanted), "Docker refuses both"


def test_devices_become_what_docker_calls_them() -> None:
    access = ACCESS["cuda"][1]
    assert made(replace(MAKING, access=access))["device_requests"] == [
        {"Driver": "nvidia", "Count": 0, "DeviceIDs": ["0", "2"], "Capabilities": [["gpu"]], "Options": {}}
    ]
    wanted = made(replace(MAKING, access=ACCESS["rocm"][1], groups=(44, 105)))
    assert wanted["devices"] == ["/dev/kfd:/dev/kfd:rwm", "/dev/dri:/dev/dri:rwm"]
    assert (wanted["group_add"], wanted["device_requests"], wanted["runtime"]) == (["44", "105"], None, None)
    assert made(replace(MAKING, access=ACCESS["gcu"][1]))["runtime"] == "enflame"


def test_folders_are_read_only_but_those_that_are_to_be_written() -> None:
    making = replace(
        MAKING,
        read_only=(Path("/models/m"), Path("/models/blobs")),
        sockets=Path("/run/s.kv"),
        hub_cache=Path("/cache/hub"),
        access=DeviceAccess(mounts=("/usr/bin/cnmon",)),
    )
    mounts = made(making, mounts=("/data/a:/a", "/data/b:/b:ro", "/data/c:/c:rw"))["mounts"]
    assert [(mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in mounts] == [
        ("/models/m", "/models/m", True),
        ("/models/blobs", "/models/blobs", True),
        ("/cache/hub", "/cache/hub", True),
        ("/usr/bin/cnmon", "/usr/bin/cnmon", True),
        ("/run/s.kv", "/run/s.kv", False),
        ("/data/a", "/a", True),
        ("/data/b", "/b", True),
        ("/data/c", "/c", False),
    ]
    assert {mount["Type"] for mount in mounts} == {"bind"}
    assert made(replace(making, hub_cache=Path("/models/m")))["mounts"][1]["Source"] == "/models/blobs", "no twins"


def test_variables_of_the_user_s_win_over_defaults_and_not_over_devices_or_the_key() -> None:
    env = {"HF_HUB_OFFLINE": "0", "HIP_VISIBLE_DEVICES": "9", "VLLM_API_KEY": "mine", "A": "b"}
    making = replace(MAKING, env=env, access=ACCESS["rocm"][1], hub_cache=Path("/cache/hub"))
    assert made(making)["environment"] == {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_CACHE": "/cache/hub",
        "HF_HUB_OFFLINE": "0",
        "A": "b",
        "HIP_VISIBLE_DEVICES": "1,3",
        "VLLM_API_KEY": "key",
    }
    assert "key" not in repr(making)


def test_its_labels_and_its_name_say_whose_it_is() -> None:
    wanted = made(replace(MAKING, sockets=Path("/run/s.kv")))
    assert wanted["name"] == container_name(MARK) == "deepinfer-chat-aaaaa-0-3-012345"
    assert mark_in(wanted["labels"]) == MARK
    assert wanted["labels"]["deepinfer.port"] == "8123"
    assert wanted["labels"]["deepinfer.kv-events"] == "/run/s.kv"
    assert "key" not in str(wanted["labels"])


@pytest.mark.parametrize(
    "labels", [{}, {"deepinfer.placement": "x"}, {"deepinfer.epoch": "a", "deepinfer.instance": "i"}]
)
def test_other_labels_are_nobody_s(labels: dict[str, str]) -> None:
    assert mark_in(labels) is None


def test_a_model_is_seen_with_what_its_links_lead_to(tmp_path: Path) -> None:
    model, blobs, other = tmp_path / "snapshots" / "1", tmp_path / "blobs", tmp_path / "other"
    for folder in (model / "sub", blobs, other):
        folder.mkdir(parents=True)
    for file in (blobs / "abc", blobs / "def", other / "ghi", model / "own"):
        file.write_text("")
    (model / "config.json").symlink_to("../../blobs/abc")
    (model / "sub" / "weights").symlink_to("../../../blobs/def")
    (model / "tokenizer.json").symlink_to(other / "ghi")
    (model / "again").symlink_to("own")
    assert model_mounts(model) == (model, blobs, other)


def test_a_model_without_links_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_mounts(tmp_path) == (tmp_path,)
