"""What kills a real vLLM, under 16 streams, one fault after the other: found, told, replaced, and nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deepinfer.agent.native.shared_memory import segments_of
from tests.alive import is_alive
from tests.broken_streams import BrokenStreams
from tests.fleet import Fleet, eventually

pytestmark = pytest.mark.timeout(600)
LOADING_SECONDS = 240

Fault = Callable[[psutil.Process], None]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, vllm_engine: object) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")).running() as fleet:
        fleet.deploy(
            model="smollm2",
            engine="vllm",
            device="cpu",
            dtype="float32",
            max_model_len=2048,
            engine_args={"enforce_eager": True},
            env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        )
        fleet.wait_ready("smollm2", LOADING_SECONDS)
        yield fleet


def of_engine(shim: psutil.Process, name: str) -> psutil.Process:
    """vLLM names its processes in their command lines."""
    return next(process for process in shim.children(recursive=True) if name in "".join(process.cmdline()))


def killed_core(shim: psutil.Process) -> None:
    of_engine(shim, "EngineCore").kill()


def killed_worker(shim: psutil.Process) -> None:
    of_engine(shim, "Worker").kill()


def killed_shim(shim: psutil.Process) -> None:
    shim.kill()


def stopped_core(shim: psutil.Process) -> None:
    os.kill(of_engine(shim, "EngineCore").pid, signal.SIGSTOP)


def sockets_of(processes: list[psutil.Process]) -> set[Path]:
    """The files of their unix sockets."""
    found = {Path(str(each.laddr)) for process in processes for each in process.net_connections("unix")}
    return {path for path in found if path.is_absolute() and path.exists()}


@pytest.mark.parametrize(
    ("fault", "words", "seconds"),
    [
        (killed_core, ("EngineCore", "was killed by SIGKILL"), 2),
        (killed_worker, ("Worker proc VllmWorker-0 died unexpectedly",), 2),
        (killed_shim, ("killed by SIGKILL",), 2),
        (stopped_core, ("it computed nothing for", "16 requests in hand"), 15),
    ],
)
def test_it_is_found_told_and_replaced(serving: Fleet, fault: Fault, words: tuple[str, ...], seconds: float) -> None:
    (before,) = serving.wait_ready("smollm2", LOADING_SECONDS)
    shim = psutil.Process(before["pid"])
    old = [shim, *shim.children(recursive=True)]
    segments = segments_of(process.pid for process in old)
    sockets = sockets_of(old)
    assert segments and any(path.parent.suffix == ".ipc" for path in sockets)
    streams = BrokenStreams(serving, "smollm2", 1900)
    fault(shim)
    began = time.monotonic()
    ends = streams.all_ended(60)  # a limit on life, not on speed
    print(f"{fault.__name__}: all streams ended {time.monotonic() - began:.1f} s after it (aim: {seconds} s)")
    assert all(end.startswith("APIError") for end in ends), ends
    (told,) = eventually(lambda: [r for r in serving.replicas("smollm2") if "trying again" in r["message"]], 60)
    print(told["message"])
    assert told["phase"] == "restarting" and all(word in told["message"] for word in words), told
    eventually(lambda: not [process.pid for process in old if is_alive(process.pid)], 10)
    (after,) = serving.wait_ready("smollm2", LOADING_SECONDS)
    assert (after["pid"] != before["pid"], after["restarts"]) == (True, before["restarts"] + 1)
    successor = psutil.Process(after["pid"])
    of_successor = sockets_of([successor, *successor.children(recursive=True)])  # some have the same names
    assert not [left for left in {*segments, *sockets} - of_successor if left.exists()]
    answer = serving.openai.completions.create(model="smollm2", prompt="The capital of France is", max_tokens=4)
    assert answer.choices[0].text
