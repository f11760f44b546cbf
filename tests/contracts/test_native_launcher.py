"""What only native engines have: sessions, strays, environments. What any launcher must do is in test_launchers.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deepinfer.agent.engine_folders import port_note
from deepinfer.agent.engine_log import log_path
from deepinfer.agent.native.engine_process import EngineProcess
from deepinfer.agent.native.launcher import NativeLauncher
from deepinfer.agent.native.own_sockets import ipc_folder
from deepinfer.engine_environments.environment import Environment
from deepinfer.fleet.launch import EngineLaunch
from tests.alive import is_alive
from tests.fleet import eventually
from tests.fleet_values import placement
from tests.program_nodes import STAYS
from tests.stepped_clock import asked_after_step

SLEEPS = "import sys, time; print('up', sys.argv[1], flush=True); time.sleep(600)"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[NativeLauncher]:
    environment = {**os.environ, "HF_TOKEN": "hf_secret", "MY_API_KEY": "k", "TOKENIZERS_PARALLELISM": "false"}
    (tmp_path / "sockets").mkdir()
    yield NativeLauncher(os.urandom(8).hex(), tmp_path / "engines", tmp_path / "sockets", environment)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """As a socket's path must be."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def with_shim(launcher: NativeLauncher, code: str) -> NativeLauncher:
    return replace(launcher, shim=(sys.executable, "-c", code))


def printed(process: EngineProcess) -> str:
    return log_path(process.folder).read_text()


async def test_an_adopted_engine_is_the_same_process_in_its_own_session(launcher: NativeLauncher) -> None:
    launcher = with_shim(launcher, SLEEPS)
    first = launcher.start(placement(), None)
    (adopted,) = await launcher.running()
    assert (adopted.pid, adopted.created, adopted.socket) == (first.pid, first.created, first.socket)
    assert adopted.child is None and adopted.is_whole
    assert os.getsid(first.pid) == first.pid
    os.kill(first.pid, signal.SIGKILL)
    assert (await first.ended()).status == -signal.SIGKILL
    assert (await adopted.ended()).status is None  # only a parent learns it


async def test_what_a_dead_shim_left_behind_is_found_and_ended(launcher: NativeLauncher) -> None:
    launcher = with_shim(launcher, STAYS)
    process = launcher.start(placement(), None)
    eventually(lambda: printed(process).count("up") == 3)
    os.kill(process.pid, signal.SIGKILL)
    assert (await process.ended()).status == -signal.SIGKILL
    (remains,) = await launcher.running()
    assert remains.pid != process.pid
    await remains.kill()
    assert await launcher.running() == []


async def test_a_process_that_lost_its_mark_and_its_shim_is_ended_too(launcher: NativeLauncher) -> None:
    """As programs do that write their title over their environment. It is known also after the clock was set."""
    forgets = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; print(\"up\", flush=True); time.sleep(600)'], env={})\n"
        "time.sleep(600)"
    )
    process = with_shim(launcher, forgets).start(placement(), None)
    eventually(lambda: "up" in printed(process))
    process.note_members()
    (child,) = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    await process.ended()
    for found in (process.members(), asked_after_step(3600, process.folder, process.members)):
        assert [member.pid for member in found] == [child.pid]
    await process.kill()
    assert not is_alive(child.pid)


async def test_an_engine_gets_its_launch_file_and_no_secrets(launcher: NativeLauncher) -> None:
    wanted = placement(epoch=3)
    wanted = wanted.model_copy(
        update={
            "devices": ("cuda:1", "cuda:3"),
            "spec": wanted.spec.model_copy(update={"env": {"OMP_NUM_THREADS": "1"}}),
        }
    )
    process = with_shim(launcher, SLEEPS).start(wanted, Path("/models/m"))
    eventually(lambda: "up" in printed(process))
    environment = psutil.Process(process.pid).environ()
    launch = EngineLaunch.model_validate_json((process.folder / "launch.json").read_bytes())
    await process.kill()
    assert {"HF_TOKEN", "MY_API_KEY"}.isdisjoint(environment)
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert environment["DEEPINFER_PLACEMENT"] == f"{wanted.id}:3:{launcher.instance}"
    assert (launch.placement, launch.epoch, launch.device) == (wanted.id, 3, "cuda")
    assert launch.served_names == ("chat", "org/model")
    assert launch.model_path == Path("/models/m")
    assert launch.socket == process.socket
    assert launch.log == log_path(process.folder)
    assert launch.port_note == port_note(process.folder)


@pytest.mark.parametrize(
    ("devices", "visible"),
    [(("cuda:1", "cuda:0"), "1,0"), (("cuda:2",), "2"), (("cpu",), ""), (("cpu", "cuda:3"), "3")],
)
async def test_an_engine_sees_its_devices_and_no_others(
    launcher: NativeLauncher, devices: tuple[str, ...], visible: str
) -> None:
    """Whatever the worker itself sees, and whatever the deployment says."""
    worker_sees = {**launcher.environment, "CUDA_VISIBLE_DEVICES": "0,1,2,3", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    spec = placement().spec.model_copy(update={"env": {"CUDA_VISIBLE_DEVICES": "7"}, "device": "0,1"})
    wanted = placement().model_copy(update={"devices": devices, "spec": spec})
    process = with_shim(replace(launcher, environment=worker_sees), SLEEPS).start(wanted, None)
    eventually(lambda: "up" in printed(process))
    environment = psutil.Process(process.pid).environ()
    launch = EngineLaunch.model_validate_json((process.folder / "launch.json").read_bytes())
    await process.kill()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == (visible, "PCI_BUS_ID")
    assert launch.tensor_parallel_size == 2


async def test_an_engine_runs_in_its_own_environment_with_our_package_and_nothing_else_of_ours(
    launcher: NativeLauncher, vllm_engine: Environment
) -> None:
    launcher = replace(launcher, environment={**launcher.environment, "PYTHONPATH": "/a/users/own"})
    process = launcher.start(placement(), Path("/no/such/model"), vllm_engine)
    command = eventually(lambda: psutil.Process(process.pid).cmdline())  # empty while it becomes the program
    environment = psutil.Process(process.pid).environ()
    await process.kill()
    assert command[:1] == [str(vllm_engine.interpreter)]
    package = process.folder / "package"
    assert environment["PYTHONPATH"] == f"{package}{os.pathsep}/a/users/own"
    assert [entry.name for entry in package.iterdir()] == ["deepinfer"]
    told = said_by(vllm_engine.interpreter, environment)
    assert told == f"{package / 'deepinfer' / 'engine_shim' / 'main.py'} None\n"


def said_by(interpreter: Path, environment: dict[str, str]) -> str:
    """Where our package comes from, and whether what is installed beside ours can be imported too."""
    code = "import deepinfer.engine_shim.main as m, importlib.util as i; print(m.__file__, i.find_spec('pytest'))"
    command = [str(interpreter), "-P", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout


MAKES_SOCKETS = """
import os, socket, time, uuid
from pathlib import Path
from deepinfer.fleet.launch import EngineLaunch
import sys
shim = EngineLaunch.model_validate_json(Path(sys.argv[1]).read_bytes()).socket
events = shim.with_suffix(".kv")
events.mkdir()
for path in (shim, events / "events", Path(os.environ["VLLM_RPC_BASE_PATH"]) / str(uuid.uuid4())):
    socket.socket(socket.AF_UNIX).bind(str(path))
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("adopted", [False, True])
async def test_a_killed_engine_leaves_no_socket(launcher: NativeLauncher, short_folder: Path, adopted: bool) -> None:
    launcher = replace(with_shim(launcher, MAKES_SOCKETS), sockets=short_folder)
    process = launcher.start(placement(), None)
    eventually(lambda: "up" in printed(process))
    assert sum(path.is_socket() for path in launcher.sockets.rglob("*")) == 3
    another = launcher.start(placement(replica=1), None)
    eventually(lambda: "up" in printed(another))
    if adopted:
        process = next(each for each in await launcher.running() if each.mark == process.mark)
    os.kill(process.pid, signal.SIGKILL)
    await process.ended()
    await process.kill()
    assert {path.stem for path in launcher.sockets.iterdir()} == {another.socket.stem}
    await another.kill()
    assert list(launcher.sockets.iterdir()) == []


def test_sockets_whose_path_would_be_too_long_stay_where_vllm_puts_them(tmp_path: Path) -> None:
    just = Path("/").joinpath("a" * (103 - 37 - len(".ipc") - 1))
    assert ipc_folder(just.with_suffix(".sock")) == just.with_suffix(".ipc")
    assert ipc_folder(Path(f"{just}b.sock")) is None


def test_the_users_own_folder_of_sockets_wins(launcher: NativeLauncher, short_folder: Path) -> None:
    launcher = replace(launcher, sockets=short_folder)
    launcher = with_shim(launcher, "import os; print('up', os.environ['VLLM_RPC_BASE_PATH'], flush=True)")
    spec = placement().spec.model_copy(update={"env": {"VLLM_RPC_BASE_PATH": "/own"}})
    process = launcher.start(placement().model_copy(update={"spec": spec}), None)
    assert eventually(lambda: printed(process)) == "up /own\n"
