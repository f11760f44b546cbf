"""The command line without a server behind it: exit codes, and errors that are one sentence on stderr."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from deepinfer.cli.patience import SLOW_SECONDS
from tests.fleet import free_port

SLOW = {"httpx", "yaml", "rich", "grpc", "psutil", "torch", "deepinfer.fleet.resources"}
DEEPINFER = Path(sys.executable).with_name("deepinfer")


def deepinfer(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEEPINFER, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def fails(told: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """It failed as it should; answers what it said."""
    assert told.returncode == exit_code, told.stderr
    assert told.stdout == ""
    assert "Traceback" not in told.stderr
    return told.stderr


@pytest.fixture
def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    "command",
    [
        ("get", "deployments"),
        ("get", "nodes", "-o", "json"),
        ("describe", "x"),
        ("explain", "x"),
        ("events",),
        ("rollout", "status", "x"),
        ("rollout", "undo", "x"),
        ("drain", "x"),
        ("node", "lost", "x"),
        ("rebalance", "--dry-run"),
        ("deploy", "smollm2", "--dry-run"),
        ("deploy", "smollm2"),
        ("delete", "x"),
        ("logs", "x"),
        ("chat", "smollm2", "hello"),
        ("alias", "list"),
        ("fleet", "confirm", "--yes"),
    ],
)
def test_an_unreachable_server_is_exit_code_3_with_the_next_step(command: tuple[str, ...], nobody: str) -> None:
    said = fails(deepinfer(*command, "--server", nobody), 3)
    assert said.startswith(f"Error: No deepinfer server answers at {nobody}; start one with `deepinfer up`")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ("get",),
        ("get", "pods"),
        ("nonsense",),
        ("deploy",),
        ("deploy", "smollm2", "--replicas", "many"),
        ("deploy", "smollm2", "--node-selector", "zone"),
        ("rollout", "undo", "x", "--to", "0"),
        ("rollout",),
        ("node", "lost"),
        ("diff",),
        ("diff", "-f", "/does/not/exist"),
        ("deploy", "smollm2", "--engine-arg", "novalue"),
        ("get", "nodes", "--server", "not an address:x"),
        ("chat", "smollm2"),  # nothing on stdin
        ("up", "-c", "/does/not/exist.toml"),
        ("up", "..."),
    ],
)
def test_wrong_usage_is_exit_code_2(command: tuple[str, ...]) -> None:
    assert fails(deepinfer(*command), 2).strip()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.yaml", "model: [", "not valid YAML in line"),
        ("a.yaml", "", "holds no deployment"),
        ("a.yaml", "---\n---\n", "holds no deployment"),
        ("a.yaml", "just text", "deployment 1 must be a mapping"),
        ("a.yaml", "model: a\n---\nnom: b\n", "deployment 2: `model` is missing"),
        ("a.yaml", "model: a\nname: 5\n", "put it in quotes"),
        ("a.yaml", "model: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a.toml", "[[deployment]", "not valid TOML"),
        ("a.toml", "[[deployments]]\nmodel = 'a'\n", "unknown table 'deployments'"),
        ("a.toml", "[deployment]\nengine = 'sim'\n", "`model` is missing"),
    ],
)
def test_a_wrong_file_is_found_before_anything_is_sent(
    tmp_path: Path, nobody: str, name: str, text: str, complaint: str
) -> None:
    (tmp_path / name).write_text(text)
    assert complaint in fails(deepinfer("apply", "-f", str(tmp_path / name), "--server", nobody), 2)


def test_a_missing_file_is_named() -> None:
    assert "/does/not/exist cannot be read: No such file" in fails(deepinfer("apply", "-f", "/does/not/exist"), 2)


@pytest.mark.parametrize("text", ["model: a\n", '[{"model": "a"}, {"model": "b"}]'])
def test_a_right_document_on_stdin_is_sent(nobody: str, text: str) -> None:
    fails(deepinfer("apply", "-f", "-", "--server", nobody, stdin=text), 3)


class Stranger(BaseHTTPRequestHandler):
    """Some web server that is not ours."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v1/nodes" else 404)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def stranger() -> Iterator[str]:
    with answering(Stranger) as address:
        yield address


@pytest.mark.parametrize("kind", ["nodes", "deployments"])
def test_another_web_server_is_told_from_deepinfer(stranger: str, kind: str) -> None:
    said = fails(deepinfer("get", kind, "--server", stranger), 3)
    assert said == f"Error: What answers at http://{stranger} is not deepinfer; name its server with --server.\n"


class Slow(BaseHTTPRequestHandler):
    """Answers when it may, at the latest some time after a terminal would tell that it has not."""

    may_answer = Event()
    at_the_latest = 10.0

    def do_POST(self) -> None:
        self.may_answer.wait(self.at_the_latest)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"moves": []}')

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Slow, "may_answer", Event())
    with answering(Slow) as address:
        yield address


def test_an_answer_that_is_long_in_coming_is_waited_for_in_silence(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "at_the_latest", SLOW_SECONDS * 1.5)
    told = deepinfer("rebalance", "--dry-run", "--server", slow)
    assert (told.stdout.startswith("every replica"), told.stderr) == (True, "")


def test_on_a_terminal_it_says_what_it_waits_for(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    command = [str(DEEPINFER), "rebalance", "--dry-run", "--server", slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while b"looking for better places" not in shown:
            shown += os.read(ours, 4096)  # fails when it ends without having said it
        Slow.may_answer.set()
        assert process.communicate(timeout=30)[0].startswith("every replica")
    os.close(ours)


def test_up_says_that_its_port_is_taken(stranger: str) -> None:
    said = fails(deepinfer("up", "--port", stranger.partition(":")[2]), 1)
    assert "Address already in use" in said
    assert "--port" in said


def test_help_tells_the_exit_codes() -> None:
    told = deepinfer("--help")
    assert told.returncode == 0
    assert "3 the server cannot be reached" in " ".join(told.stdout.split())


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("serve", "--port", "-1"), "-1"),
        (("serve", "-c", "/does/not/exist.toml"), "/does/not/exist.toml cannot be read"),
        (("worker", "-n", "NOT A NAME"), "NOT A NAME"),
        (("worker", "-c", "/does/not/exist.toml"), "/does/not/exist.toml cannot be read"),
    ],
)
def test_long_lived_processes_get_their_flags(command: tuple[str, ...], complaint: str) -> None:
    """The module itself refuses the value: the command became it, and the flag arrived."""
    told = deepinfer(*command)
    assert told.returncode != 0
    assert told.stderr.startswith("error: ")  # ours begins with a capital
    assert complaint in told.stderr


@pytest.mark.parametrize("command", [("--help",), ("serve", "--help"), ("version",)])
def test_light_commands_import_nothing_slow(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from deepinfer.cli.main import app\n"
        f"try: app({command!r})\n"
        "except SystemExit: pass\n"
        f"print(sorted({SLOW!r} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_a_worker_is_told_its_labels_by_the_command_line() -> None:
    said = fails(deepinfer("worker", "--drain", "--label", "zone=a", "--label", "no label"), 2)
    assert said.startswith('error: "no label" is no label; write KEY=VALUE')
