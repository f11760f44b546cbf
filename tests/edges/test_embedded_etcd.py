"""The embedded etcd: one is enough, data stays, and it never outlives us unless asked to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deepinfer.fleet.die_with_parent import dying_with_me
from deepinfer.fleet.embedded_etcd import EtcdWillNotStart, embedded_etcd, newest_etcd
from deepinfer.fleet.etcd_version import parsed_version, version_warning
from deepinfer.fleet.store import EtcdStore
from tests.fleet import free_port

START_ETCD = Path(__file__).parents[2] / "start-etcd.sh"


async def test_one_that_answers_is_used_and_left_running(etcd: str, tmp_path: Path) -> None:
    port = int(etcd.rpartition(":")[2])
    async with embedded_etcd(tmp_path / "etcd", port) as found:
        assert not found.started
        assert found.endpoint == etcd
    async with EtcdStore.connect([etcd]):
        assert not (tmp_path / "etcd").exists()


async def test_a_restart_keeps_the_data_and_the_stop_is_complete(tmp_path: Path) -> None:
    port = free_port()
    async with embedded_etcd(tmp_path / "etcd", port) as first, EtcdStore.connect([first.endpoint]) as store:
        await store.commit({"/deepinfer/a": b"1"})
    assert first.pid is not None
    assert not psutil.pid_exists(first.pid)
    async with embedded_etcd(tmp_path / "etcd", port) as second, EtcdStore.connect([second.endpoint]) as store:
        assert second.started
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"1"}


async def test_one_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async with (
        embedded_etcd(tmp_path / "etcd", free_port()) as etcd,
        EtcdStore.connect([etcd.endpoint], timeout=20) as store,
    ):
        await store.commit({"/deepinfer/a": b"1"})
        assert etcd.pid is not None
        os.kill(etcd.pid, signal.SIGKILL)
        assert (await store.read("/deepinfer/")).values == {"/deepinfer/a": b"1"}
        assert not psutil.pid_exists(etcd.pid)


async def test_two_on_one_machine_listen_on_loopback_only_and_do_not_meet(tmp_path: Path) -> None:
    async with (
        embedded_etcd(tmp_path / "one", free_port()) as one,
        embedded_etcd(tmp_path / "two", free_port()) as two,
    ):
        for each in (one, two):
            assert each.started
            sockets = psutil.Process(each.pid).net_connections("tcp")
            assert {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


async def test_a_port_that_something_else_holds_is_an_error_with_the_logs_words(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        with pytest.raises(EtcdWillNotStart, match=r"etcd\.log ends with: .*address already in use"):
            async with embedded_etcd(tmp_path / "etcd", server.sockets[0].getsockname()[1]):
                pass


def test_the_embedded_etcd_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from deepinfer.fleet.embedded_etcd import embedded_etcd\n"
        "async def main():\n"
        "    async with embedded_etcd(pathlib.Path(sys.argv[1]), int(sys.argv[2])) as etcd:\n"
        "        print(etcd.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "etcd"), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        etcd = psutil.Process(int(parent.stdout.readline()))
        assert "etcd" in etcd.name()
        parent.kill()
    etcd.wait(timeout=20)


def test_a_program_whose_parent_is_gone_already_is_never_run(tmp_path: Path) -> None:
    wrapper = [sys.executable, *dying_with_me([])[1:4], "--parent", "1", "SIGKILL", "touch", str(tmp_path / "ran")]
    assert subprocess.run(wrapper, check=False).returncode == 1
    assert not (tmp_path / "ran").exists()


def test_start_etcd_starts_one_that_stays_and_then_finds_it(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = tmp_path / "start-etcd.sh"
    script.write_bytes(START_ETCD.read_bytes())
    script.chmod(0o755)
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    port = str(free_port())

    def run() -> str:
        done = subprocess.run(
            [script, "--port", port], env=environment, cwd="/", capture_output=True, text=True, check=True
        )
        return done.stdout

    said = run()
    pid = int(said.partition("(pid ")[2].partition(",")[0])
    try:
        assert str(tmp_path / "deepinfer" / "etcd") in said
        assert f"already running at 127.0.0.1:{port}" in run()
        assert os.getsid(pid) == pid
    finally:
        os.kill(pid, signal.SIGTERM)
        psutil.Process(pid).wait(timeout=20)


async def test_in_the_foreground_the_process_is_etcd_itself(tmp_path: Path) -> None:
    """What a container runs: signals reach etcd, and its exit status is the container's."""
    port = free_port()
    command = [sys.executable, "-m", "deepinfer.fleet.embedded_etcd", "--port", str(port), "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:  # noqa: ASYNC220 - it does not wait
        async with EtcdStore.connect([f"127.0.0.1:{port}"], timeout=30) as store:
            await store.commit({"/deepinfer/a": b"1"})
        assert psutil.Process(process.pid).name() == "etcd"
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM)  # it ends in order, and then by the signal it was sent


def test_versions_are_compared_as_numbers() -> None:
    assert parsed_version("etcd Version: 3.5.16") > parsed_version("3.5.6") > parsed_version("no version")
    assert newest_etcd().is_file()


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("3.5.5", "3.5.6 or newer"),
        ("3.5.0-alpha.0", "3.5.6 or newer"),
        ("3.4.21", "3.4.22 or newer"),
        ("3.3.25", "too old"),
        ("3.4.22", None),
        ("3.5.6", None),
        ("3.5.30", None),
        ("3.6.0", None),
        ("4.0.0", None),
        ("", None),
    ],
)
def test_versions_that_lose_writes_are_warned_of(version: str, says: str | None) -> None:
    said = version_warning(version)
    assert said is None if says is None else said is not None and says in said
