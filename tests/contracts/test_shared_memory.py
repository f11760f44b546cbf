"""A killed engine's shared memory: gone with it, unless somebody else still uses it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinfer.agent.engine_log import log_path
from deepinfer.agent.native.engine_process import EngineProcess
from deepinfer.agent.native.launcher import NativeLauncher
from tests.fleet import eventually
from tests.fleet_values import placement

MAPS = """
import mmap, pathlib, time
path = pathlib.Path({path!r})
path.touch()
with path.open("r+b") as file:
    file.truncate(1 << 16)
    memory = mmap.mmap(file.fileno(), 0)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/deepinfer-test-{os.getpid()}")  # noqa: S108
    yield path
    path.unlink(missing_ok=True)


def engine(folder: Path, segment: Path) -> EngineProcess:
    (folder / "sockets").mkdir(parents=True)
    shim = (sys.executable, "-c", MAPS.format(path=str(segment)))
    launcher = NativeLauncher(os.urandom(8).hex(), folder / "engines", folder / "sockets", os.environ, shim=shim)
    process = launcher.start(placement(), None)
    eventually(lambda: "up" in log_path(process.folder).read_text())
    return process


def is_there(segment: Path) -> bool:
    return segment.exists()


async def test_a_killed_engine_leaves_no_shared_memory(tmp_path: Path, segment: Path) -> None:
    process = engine(tmp_path / "one", segment)
    assert is_there(segment)
    await process.kill()
    assert not is_there(segment)


async def test_what_another_engine_uses_stays(tmp_path: Path, segment: Path) -> None:
    one, other = engine(tmp_path / "one", segment), engine(tmp_path / "other", segment)
    await one.kill()
    assert is_there(segment)
    await other.kill()
    assert not is_there(segment)


async def test_what_an_engine_left_that_somebody_else_killed_goes_too(tmp_path: Path, segment: Path) -> None:
    process = engine(tmp_path / "one", segment)
    process.note_members()
    os.kill(process.pid, signal.SIGKILL)
    await process.ended()
    await process.kill()
    assert not is_there(segment)
