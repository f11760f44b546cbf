"""`deepinfer up` as a person uses it: one command, an endpoint that works as printed, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fleet import Fleet, eventually

DEEPINFER = Path(sys.executable).with_name("deepinfer")


class Up:
    """`deepinfer up` with the simulated engine, in a home of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.environment = {**os.environ, "XDG_DATA_HOME": str(fleet.home), "DEEPINFER_SERVER": fleet.url}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [str(DEEPINFER), "up", "sim-chat", "--engine", "sim", "-c", str(self.fleet.config), *options]
        with (self.fleet.home / "progress.log").open("w") as progress:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=progress,
                text=True,
                start_new_session=True,
            )
        return self.process

    def welcome(self) -> list[str]:
        """What it prints when all is ready."""
        assert self.process is not None and self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                return lines
        pytest.fail(f"`up` ended: {self.progress()}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def progress(self) -> str:
        return (self.fleet.home / "progress.log").read_text()

    def run(self, line: str) -> str:
        """What a shell makes of a line that `up` printed."""
        done = subprocess.run(
            ["bash", "-c", line], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ends(self, with_signal: signal.Signals | None = None) -> int:
        if with_signal is not None:
            self.send(with_signal)
        assert self.process is not None
        return self.process.wait(25)  # less than a worker waits for running requests

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def modules(self) -> dict[str, psutil.Process]:
        """The children by their module: control_plane, agent, engine_shim."""
        found = {}
        for process in self.fleet.processes():
            command = process.cmdline()
            if "-m" in command[:4]:
                found[command[command.index("-m") + 1].removeprefix("deepinfer.")] = process
        return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(Fleet(tmp_path))
    yield up
    if up.process is not None:
        up.process.kill()
        up.process.wait()
    for process in up.fleet.processes():
        process.kill()


def test_one_command_and_nothing_left(up: Up) -> None:
    up.start()
    told = up.welcome()

    curl = next(line for line in told if line.startswith("curl "))
    answer = json.loads(up.run(f"{curl} --silent --show-error --fail"))
    assert answer["choices"][0]["message"]["content"]
    chat = next(line for line in told if " chat " in line)
    assert up.run(f"{chat} hello").strip()
    assert {"control_plane", "agent", "engine_shim"} <= up.modules().keys()
    assert "starting the worker" in up.progress()

    second = subprocess.run(
        [DEEPINFER, "up", "-c", up.fleet.config], env=up.environment, capture_output=True, text=True
    )
    assert second.returncode == 1
    assert f"A deepinfer already answers at {up.fleet.url}" in second.stderr

    assert up.ends(signal.SIGINT) == 0
    assert up.fleet.processes() == []


def test_what_was_there_is_found_again_even_after_kill_9(up: Up) -> None:
    up.start()
    up.welcome()
    before = up.fleet.get("/v1/deployments/sim-chat")
    assert psutil.Process(up.pid).num_threads() == 1  # each one that dies would be a SIGINT for the children
    up.ends(signal.SIGKILL)
    eventually(lambda: not up.fleet.processes())

    up.start()
    curl = next(line for line in up.welcome() if line.startswith("curl "))
    assert json.loads(up.run(f"{curl} --silent --show-error --fail"))["choices"]
    after = up.fleet.get("/v1/deployments/sim-chat")
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
    assert up.ends(signal.SIGTERM) == 0
    assert up.fleet.processes() == []


def test_a_child_that_dies_ends_everything_with_its_last_words(up: Up) -> None:
    up.start()
    up.welcome()
    up.modules()["agent"].kill()
    assert up.ends() == 1
    assert "The worker was killed by SIGKILL" in up.progress()
    assert "deepinfer worker local: ready" in up.progress()
    assert up.fleet.processes() == []


def test_a_second_ctrl_c_does_not_wait_for_running_requests(up: Up) -> None:
    up.start()
    up.welcome()
    up.run(f"{DEEPINFER} deploy sim/slow --engine sim --engine-arg seconds_per_output_token=60")
    body = {"model": "slow", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with up.fleet.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        up.send(signal.SIGINT)
        eventually(lambda: "stopping slow" in (up.fleet.home / "deepinfer/up/worker.log").read_text())
        assert "engine_shim" in up.modules()
        assert up.ends(signal.SIGINT) == 0
    assert up.fleet.processes() == []


def test_it_can_be_ended_while_it_starts(up: Up) -> None:
    up.start()
    eventually(lambda: "control_plane" in up.modules())
    assert up.ends(signal.SIGINT) == 0
    assert up.fleet.processes() == []


def test_a_refused_model_ends_it_and_says_why(up: Up) -> None:
    up.start("--engine", "vllm")
    assert up.ends() == 1
    assert "Error: " in up.progress() and "`deepinfer engine install vllm" in up.progress()
    assert up.fleet.processes() == []
