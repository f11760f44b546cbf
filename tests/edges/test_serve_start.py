"""How `serve` starts when something is in its way: one sentence with the next step, or patience."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.etcd_version import version_warning
from deepinfer.fleet.identity import FleetIdentity
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess
from tests.fleet import eventually, free_port


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "deepinfer.control_plane", *arguments]


def failing_serve(*arguments: str, status: int = 1) -> str:
    """What it says on stderr."""
    ended = subprocess.run(serve_command(*arguments), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (status, "")
    return ended.stderr


@contextmanager
def serving(home: Path, *arguments: str, stderr: IO[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "XDG_DATA_HOME": str(home)}
    process = subprocess.Popen(
        serve_command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_named_with_the_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failing_serve("--port", str(port))
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert str(port) in said and "--port" in said


def test_nobody_joins_several_gateways_on_their_port(etcd: str, tmp_path: Path) -> None:
    """Although each of them lets its siblings share it."""
    with serving(tmp_path, "--port", "0", "--gateways", "2", "--etcd", etcd) as process:
        assert process.stdout is not None
        port = process.stdout.readline().rpartition(":")[2].strip()
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        for gateways in ("1", "2"):
            said = failing_serve("--port", port, "--gateways", gateways)
            assert said.startswith(f"error: Cannot listen on 127.0.0.1:{port}: Address already in use")
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["--port", "70000"], "--port 70000 is no port", 2),
        (["--gateways", "0"], "--gateways 0 cannot be", 2),
        (["-c", "/nowhere.toml"], "/nowhere.toml cannot be read", 2),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: list[str], words: str, status: int) -> None:
    said = failing_serve(*arguments, status=status)
    assert words in said and len(said.splitlines()) == 1


def test_a_store_of_a_newer_version_is_not_touched(own_etcd: EtcdProcess) -> None:
    async def write(puts: dict[str, bytes | None]) -> dict[str, bytes]:
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            await store.commit(puts)
            return (await store.read("")).values

    newer = {keys.IDENTITY: FleetIdentity(id="a" * 16, schema=2).to_json()}
    before = asyncio.run(write({**newer}))
    said = failing_serve("--port", "0", "--etcd", own_etcd.endpoint)
    assert "error: The store has schema 2, and this version of deepinfer knows up to 1; upgrade this deepinfer." in said
    assert asyncio.run(write({})) == before


def test_it_is_alive_but_not_ready_while_its_etcd_does_not_answer(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, "--port", str(port), "--etcd", f"127.0.0.1:{free_port()}") as process:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/health"))
        ready = httpx.get(f"{url}/ready")
        assert ready.status_code == 503 and "etcd" in ready.json()["error"]["message"]
        assert httpx.get(f"{url}/v1/deployments").headers["retry-after"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_etcd(tmp_path: Path, sign: signal.Signals) -> None:
    config = tmp_path / "c.toml"
    etcd_port = free_port()
    config.write_text(f"[etcd]\nport = {etcd_port}\n")
    with serving(tmp_path, "-c", str(config), "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("deepinfer serve: ready at http://127.0.0.1:")
        assert httpx.get(f"{line.split()[-1]}/ready").status_code == 200
        process.send_signal(sign)
        assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", etcd_port)) != 0


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


async def test_a_named_etcd_of_a_version_that_loses_writes_is_warned_of(etcd: str, tmp_path: Path) -> None:
    """Or not, if the one on this machine is newer."""
    async with EtcdStore.connect([etcd]) as store:
        warning = version_warning(await store.server_version())
    said = (tmp_path / "said").open("w+")
    with serving(tmp_path, "--port", "0", "--etcd", etcd, stderr=said) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("deepinfer serve: ready")
    said.seek(0)
    text = said.read()
    assert warning in text if warning else "can lose writes" not in text
