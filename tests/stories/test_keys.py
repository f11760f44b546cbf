"""A server that wants API keys: the first one is made on its own machine, and revoking one is felt at once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import DEEPINFER, Fleet, eventually
from tests.keyed import bearer

REQUIRED = 'authentication = "required"\n'
CHAT = "/v1/chat/completions"
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture
def guarded(tmp_path: Path, own_etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Started by somebody who has a key."""
    monkeypatch.setenv("DEEPINFER_API_KEY", "di-in-the-shell")
    home = tmp_path / "home"
    home.mkdir()
    with Fleet(home, etcd=[own_etcd.endpoint], serve=REQUIRED).running() as fleet:
        yield fleet


def deepinfer(fleet: Fleet, *arguments: str, key: str = "", status: int = 0) -> str:
    """What it says as the user who started the server, or with a key on another machine."""
    home = fleet.home / "elsewhere" if key else fleet.home
    mine = {"XDG_DATA_HOME": str(home), "DEEPINFER_SERVER": fleet.url, "DEEPINFER_API_KEY": key}
    environment = {**os.environ, **mine}
    done = subprocess.run(
        [DEEPINFER, *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout or done.stderr


def status_with(fleet: Fleet, secret: str) -> int:
    return fleet.http.get("/v1/models", headers=bearer(secret)).status_code


def test_from_the_first_key_to_its_revocation(guarded: Fleet, own_etcd: EtcdProcess) -> None:
    assert guarded.http.get("/v1/nodes").status_code == 401
    deepinfer(guarded, "deploy", "sim/chat", "--name", "chat", "--engine", "sim")
    user = deepinfer(guarded, "keys", "create", "team", "--model", "chat", "--expires-in", "30d").splitlines()[-1]
    other = json.loads(deepinfer(guarded, "keys", "create", "ops", "--admin", "--streams", "3", "-o", "json"))

    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=user, max_retries=0)
    assert client.chat.completions.create(**HELLO).choices[0].message.content  # type: ignore[call-overload]
    assert deepinfer(guarded, "chat", "chat", "hello", key=user).strip()
    assert "admin" in deepinfer(guarded, "get", "nodes", key=user, status=1)
    assert "node-1" in deepinfer(guarded, "get", "nodes", key=other["secret"])
    assert "DEEPINFER_API_KEY" in deepinfer(guarded, "get", "nodes", key="di-wrong", status=1)
    listed = deepinfer(guarded, "keys", "list", key=other["secret"])
    assert [line.split()[1:4] for line in listed.splitlines()[1:]] == [
        ["ops", "admin", "all"],
        ["team", "user", "chat"],
    ]

    assert status_with(guarded, user) == 200
    assert deepinfer(guarded, "keys", "revoke", "team") == "team is revoked\n"
    eventually(lambda: status_with(guarded, user) == 401, 1.0)
    assert "There is no API key team" in deepinfer(guarded, "keys", "revoke", "team", status=4)

    (engine,) = [process for process in guarded.processes() if "deepinfer.engine_shim" in process.cmdline()]
    assert "DEEPINFER_API_KEY" not in engine.environ()
    own_etcd.kill()
    assert status_with(guarded, other["secret"]) == 200  # what was known last stays good
    assert status_with(guarded, user) == 401
    assert guarded.serve is not None
    guarded.serve.kill()
    guarded.serve.wait()
    guarded.serve = guarded._start("deepinfer.control_plane", log="serve.log")
    eventually(lambda: guarded.is_up("/health"), 30)
    for secret in (other["secret"], user):
        assert status_with(guarded, secret) == 503  # nothing is known yet
    own_etcd.restart()
    eventually(lambda: guarded.is_up("/ready"), 30)
    assert (status_with(guarded, other["secret"]), status_with(guarded, user)) == (200, 401)

    told = "".join(file.read_text(errors="replace") for file in guarded.home.glob("*.log"))
    told += " ".join(" ".join(process.cmdline()) for process in guarded.processes() if psutil.pid_exists(process.pid))
    tokens = guarded.home / "deepinfer" / "admin-tokens"
    for secret in (user, other["secret"], (tokens / str(guarded.port)).read_text()):
        assert secret not in told
    guarded.serve.terminate()
    guarded.serve.wait(30)
    assert not list(tokens.iterdir())


def test_any_address_may_be_listened_on_and_wants_keys_unless_that_is_said(tmp_path: Path) -> None:
    everywhere = "0.0.0.0"  # noqa: S104
    for number, (host, flags, status) in enumerate(
        [
            (everywhere, [], 401),
            (everywhere, ["--without-authentication"], 503),
            ("::1", ["--with-authentication"], 401),
        ]
    ):
        home = tmp_path / str(number)
        home.mkdir()
        fleet = Fleet(home, etcd=["127.0.0.1:1"])
        fleet.url = fleet.url.replace("127.0.0.1", "[::1]") if host == "::1" else fleet.url
        fleet.http.base_url = httpx.URL(fleet.url)
        fleet.serve = fleet._start("deepinfer.control_plane", "--host", host, *flags, log="serve.log")
        try:
            eventually(lambda fleet=fleet: fleet.is_up("/health"), 30)  # type: ignore[misc]
            assert httpx.get(f"{fleet.url}/v1/nodes").status_code == status
            assert ("without authentication" in fleet.log("serve.log")) is (status == 503)
        finally:
            fleet.close()
