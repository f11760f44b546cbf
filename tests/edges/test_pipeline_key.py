"""The key of replicas in stages: a file that is made once, that nobody else reads, and that says nothing of itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepinfer.agent.pipeline_key import PipelineKey
from deepinfer.fleet.config import InvalidConfig
from deepinfer.fleet.pipeline import PipelineOptions, hosts_name
from deepinfer.fleet.resources import Placement
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from tests.fleet_values import placement

STARTERS = 8


def of_stages(deployment: str = "chat", uid: str = "aaaaa", replica: int = 0) -> Placement:
    spec = DeploymentSpec(model="m", engine=EngineKind.LAYER_SHARD, pipeline=PipelineOptions(stages=2))
    changes = {"id": f"{deployment}-{uid}-{replica}", "spec": spec}
    return placement(deployment).model_copy(update=changes)


def secret(key: PipelineKey, of: Placement) -> str:
    launch = key.launch(of, "127.0.0.1")
    assert launch is not None
    return launch.secret


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pipeline"
    made = PipelineKey(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(path.read_bytes()) == 64
    assert PipelineKey(path).fingerprint == made.fingerprint
    assert list(path.parent.iterdir()) == [path]


def test_starters_at_the_same_time_have_the_same_key(tmp_path: Path) -> None:
    all_there = threading.Barrier(STARTERS)

    def start(path: Path) -> str:
        all_there.wait()
        return PipelineKey(path).fingerprint

    with ThreadPoolExecutor(STARTERS) as starters:
        for path in (tmp_path / str(number) / "pipeline" for number in range(200)):
            told = set(starters.map(start, [path] * STARTERS))
            assert told == {PipelineKey(path).fingerprint}
            assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    PipelineKey(path)
    path.chmod(mode)
    with pytest.raises(InvalidConfig, match=f"chmod 600 {path}") as raised:
        PipelineKey(path)
    assert path.read_text() not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31, b"  " * 40])
def test_a_key_that_is_too_short_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig, match="holds no key of 32 bytes"):
        PipelineKey(path)


def test_a_key_is_the_same_with_a_line_end_behind_it(tmp_path: Path) -> None:
    """It is copied by hand."""
    one, other = tmp_path / "one", tmp_path / "other"
    fingerprint = PipelineKey(one).fingerprint
    other.write_bytes(one.read_bytes() + b"\n")
    other.chmod(0o600)
    assert PipelineKey(other).fingerprint == fingerprint


def test_secrets_of_two_deployments_differ_and_those_of_one_are_the_same(tmp_path: Path) -> None:
    key, elsewhere = PipelineKey(tmp_path / "pipeline"), PipelineKey(tmp_path / "elsewhere")
    head, host = of_stages(), of_stages(hosts_name("chat"), replica=3)
    assert secret(key, head) == secret(key, host) == secret(PipelineKey(tmp_path / "pipeline"), head)
    others = [
        secret(key, of_stages("code")),
        secret(key, of_stages(uid="bbbbb")),
        secret(key, of_stages("chat-x")),
        secret(elsewhere, head),
    ]
    assert len({secret(key, head), *others}) == 5
    assert len(bytes.fromhex(secret(key, head))) == 32


def test_what_is_told_of_it_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    key = PipelineKey(path)
    launch = key.launch(of_stages(), "127.0.0.1")
    assert launch is not None
    assert launch.secret not in repr(launch)
    assert path.read_text() not in f"{launch.secret} {key.fingerprint} {key!r}"
    assert key.fingerprint not in launch.secret


def test_a_replica_that_is_not_in_stages_is_told_nothing(tmp_path: Path) -> None:
    assert PipelineKey(tmp_path / "pipeline").launch(placement(), "127.0.0.1") is None
