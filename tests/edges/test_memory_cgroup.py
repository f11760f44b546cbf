"""Where a process's memory cgroup is, on either version and in a container; the kernel's own words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepinfer.agent.native.memory_cgroup import OutOfMemoryKills, memory_cgroup_of
from tests.memory_limit import memory_limit

V1_MOUNT = "30 29 0:26 {root} {at} rw,relatime - cgroup cgroup rw,memory"
V2_MOUNT = "30 29 0:26 {root} {at} rw,relatime - cgroup2 cgroup2 rw"


@pytest.mark.parametrize(
    ("mount", "root", "cgroups", "folder", "version"),
    [
        (V1_MOUNT, "/", "5:devices:/\n4:memory:/a/b\n0::/", "a/b", 1),
        (V1_MOUNT, "/docker/x", "4:memory:/docker/x/b\n", "b", 1),  # a container without a cgroup namespace
        (V2_MOUNT, "/", "0::/user.slice/c\n", "user.slice/c", 2),
        (V2_MOUNT, "/", "0::/\n", "", 2),
    ],
)
def test_it_is_found(tmp_path: Path, mount: str, root: str, cgroups: str, folder: str, version: int) -> None:
    at, proc = tmp_path / "cgroup", tmp_path / "proc"
    there = at / folder
    there.mkdir(parents=True)
    (there / ("memory.events" if version == 2 else "memory.oom_control")).write_text("under_oom 0\noom_kill 3\n")
    (there / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text("1048576\n")
    for pid in ("self", "7"):
        (proc / pid).mkdir(parents=True)
    (proc / "self/mountinfo").write_text(mount.format(root=root, at=at) + "\n")
    (proc / "7/cgroup").write_text(cgroups)
    found = memory_cgroup_of(7, proc)
    assert found is not None
    assert (found.folder, found.version, found.kills(), found.limit_bytes()) == (there, version, 3, 1048576)


def test_a_process_that_has_ended_has_none(tmp_path: Path) -> None:
    assert memory_cgroup_of(7, tmp_path) is None


def test_this_machine_has_one() -> None:
    found = memory_cgroup_of(os.getpid())
    assert found is not None and found.kills() >= 0


def test_a_kill_by_the_kernel_is_told_once_and_with_the_limit() -> None:
    kills = OutOfMemoryKills()
    with memory_limit(64 << 20) as limit:
        victim = subprocess.Popen(
            [sys.executable, "-c", "input(); x = bytearray(256 << 20); input()"], stdin=subprocess.PIPE
        )
        limit.take(victim.pid)
        cgroup = kills.remember(victim.pid)
        assert kills.reason(cgroup) is None
        assert victim.stdin is not None
        victim.stdin.write(b"go\n")
        victim.stdin.flush()
        assert victim.wait(30) == -9
        told = kills.reason(cgroup)
        assert told is not None and "limit 0.1 GiB" in told and f"deepinfer-test-{os.getpid()}" in told
