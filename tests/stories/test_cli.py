"""The command line on a real fleet with simulated engines: from a file to an answer in the terminal, and away again."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet, eventually

DEEPINFER = Path(sys.executable).with_name("deepinfer")
FILE = """
model: sim/chat
name: chat
engine: sim
---
- {model: sim/pair, engine: sim, replicas: 2}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")).running() as fleet:
        yield fleet


def command(fleet: Fleet, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEEPINFER, *arguments],
        env={**os.environ, "DEEPINFER_SERVER": fleet.url},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def deepinfer(fleet: Fleet, *arguments: str, stdin: str = "") -> str:
    done = command(fleet, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # a pipe gets no colour
    return done.stdout


@pytest.fixture(scope="module")
def chat(served: Fleet) -> str:
    """A deployment with one replica."""
    deepinfer(served, "deploy", "sim/chat", "--name", "chat", "--engine", "sim", "--engine-arg", "max_num_seqs=8")
    return "chat"


def test_deploy_waits_until_a_chat_is_answered(served: Fleet, chat: str) -> None:
    assert deepinfer(served, "chat", chat, "hello").strip()
    assert deepinfer(served, "chat", chat, stdin="hello from a pipe").strip()
    again = command(served, "deploy", "sim/chat", "--name", "chat", "--engine", "sim")
    assert again.returncode == 1
    assert "already" in again.stderr


def test_get_and_describe_show_it(served: Fleet, chat: str) -> None:
    table = deepinfer(served, "get", "deployments").splitlines()
    assert table[0].split()[:5] == ["NAME", "MODEL", "ENGINE", "READY", "PHASE"]
    assert ["chat", "sim/chat", "sim", "1/1", "ready"] in [line.split()[:5] for line in table]
    assert "node-1" in deepinfer(served, "get", "replicas")
    assert deepinfer(served, "get", "nodes", "node-1").splitlines()[1].split()[:2] == ["node-1", "ready"]
    view = json.loads(deepinfer(served, "get", "deployments", chat, "-o", "json"))
    assert (view["name"], view["engine_args"]) == ("chat", {"max_num_seqs": 8})
    described = deepinfer(served, "describe", chat)
    assert "engine_args:  max_num_seqs=8\n" in described and "rollout" not in described
    assert view["replica_list"][0]["id"] in described


def test_a_pair_is_deployed_by_its_roles(served: Fleet) -> None:
    for role in ("prefill", "decode"):
        deepinfer(served, "deploy", "sim/two", "--name", role, "--engine", "sim", "--role", role)
    rows = [line.split() for line in deepinfer(served, "get", "deployments").splitlines()]
    assert ["prefill", "sim/two", "sim", "1/1", "ready", "prefill"] in rows
    assert " decode" in deepinfer(served, "get", "replicas")
    assert deepinfer(served, "explain", "decode").startswith("role decode: answers")
    assert deepinfer(served, "chat", "sim/two", "tale " * 500).strip()
    assert 'deepinfer_prefills_total{model_name="sim/two",outcome="separate"} 1' in served.http.get("/metrics").text
    for role in ("prefill", "decode"):
        deepinfer(served, "delete", role)


def test_logs_by_deployment_and_by_replica(served: Fleet, chat: str) -> None:
    replica = served.replicas(chat)[0]["id"]
    whole = deepinfer(served, "logs", chat)
    assert whole.strip()
    assert deepinfer(served, "logs", replica, "--tail", "1").splitlines() == whole.splitlines()[-1:]


def test_apply_creates_then_leaves_alone_then_changes(served: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE.replace("name: chat", "name: applied"))
    assert deepinfer(served, "apply", "-f", str(file), "--wait").splitlines() == ["applied created", "pair created"]
    assert deepinfer(served, "apply", "-f", str(file)).splitlines() == ["applied unchanged", "pair unchanged"]
    toml = "[[deployment]]\nmodel = 'sim/chat'\nname = 'applied'\nengine = 'sim'\nreplicas = 2\n"
    file.with_suffix(".toml").write_text(toml)
    changed = json.loads(deepinfer(served, "apply", "-f", str(file.with_suffix(".toml")), "-o", "json", "--wait"))
    assert [(view["name"], view["generation"], view["replicas"]) for view in changed] == [("applied", 2, 2)]

    several = command(served, "logs", "pair")
    assert several.returncode == 2
    assert "pair has 2 replicas; name one of" in several.stderr
    assert json.loads(deepinfer(served, "delete", "applied", "-o", "json")) == {"name": "applied", "deleted": True}
    assert served.replicas("applied") == []
    assert deepinfer(served, "delete", "pair", "--no-wait") == "pair is being deleted\n"


@pytest.mark.parametrize(
    "arguments", [("get", "deployments", "x"), ("get", "replicas", "x"), ("get", "nodes", "x"), ("describe", "x")]
)
def test_what_is_not_there_is_exit_code_4(served: Fleet, arguments: tuple[str, ...]) -> None:
    assert command(served, *arguments).returncode == 4


@pytest.mark.parametrize("arguments", [("logs", "x"), ("delete", "x"), ("chat", "x", "hello")])
def test_nothing_can_be_done_with_what_is_not_there(served: Fleet, arguments: tuple[str, ...]) -> None:
    done = command(served, *arguments)
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--engine-arg", "max_num_seq=8"), "max_num_seqs"),
        (("--replicas", "-1"), "replicas"),
        (("--engine", "simm"), "engine"),
    ],
)
def test_the_server_refuses_a_wrong_spec_as_wrong_input(
    served: Fleet, options: tuple[str, ...], complaint: str
) -> None:
    done = command(served, "deploy", "sim/wrong", "--engine", "sim", *options)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_what_has_no_place_is_told(served: Fleet) -> None:
    done = command(served, "deploy", "sim/nowhere", "--engine", "sim", "--device", "cuda:7")
    assert done.returncode == 1
    assert "nowhere has no place: " in done.stderr
    deepinfer(served, "delete", "nowhere")


class Terminal:
    """`deepinfer chat` as a person has it before them."""

    def __init__(self, fleet: Fleet, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self._screen, self.text = ours, ""
        os.set_blocking(ours, False)
        environment = {**os.environ, "DEEPINFER_SERVER": fleet.url, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [DEEPINFER, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def shows(self, text: str) -> None:
        """Wait for it, after what was waited for before."""
        eventually(lambda: text in self.look())
        self.text = self.text.partition(text)[2]

    def types(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def look(self) -> str:
        try:
            self.text += os.read(self._screen, 65536).decode(errors="replace")
        except (BlockingIOError, OSError):  # nothing new, or its end
            return self.text
        return self.text


def test_a_conversation_in_the_terminal(served: Fleet) -> None:
    slow = ("--engine-arg", "seconds_per_output_token=1")
    deepinfer(served, "deploy", "sim/slow", "--engine", "sim", *slow)
    terminal = Terminal(served, "chat", "slow")
    terminal.shows(">>> ")
    terminal.types("tell me a long story\n")
    terminal.shows("story\r\n")
    eventually(terminal.look)
    assert "Error" not in terminal.text
    terminal.process.send_signal(signal.SIGINT)
    terminal.shows("(stopped; Ctrl-D leaves)")
    terminal.shows(">>> ")
    terminal.types("\x04")
    assert terminal.process.wait(20) == 0
