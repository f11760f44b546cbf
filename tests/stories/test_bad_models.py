"""A model that cannot be served: a real agent says which file and why, and starts no process for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from deepinfer.fleet.resources import Phase, Placement
from deepinfer.fleet.spec import Backend, DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.docker_engine import DockerEngine
from tests.empty_model import put_empty_model
from tests.fleet_values import placement
from tests.tokenizer_folders import byte_level_folder
from tests.worker_process import Worker, in_phase, put, until

BACKENDS = [{"engine": EngineKind.LAYER_SHARD}, {"backend": Backend.DOCKER, "docker_image": "vllm/vllm-openai:none"}]


@pytest.fixture
async def worker(tmp_path: Path, etcd: str, docker_engine: DockerEngine) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, etcd, more_config=f'model_roots = ["{tmp_path}/models"]\n', docker=docker_engine.host)
    yield worker
    await worker.clean_up()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put_empty_model(tmp_path / "models" / "model")


def served(model: Path, **spec: Any) -> Placement:
    return placement().model_copy(update={"spec": DeploymentSpec(model="org/model", model_path=str(model), **spec)})


def renamed(model: Path) -> None:
    model.rename(model.with_name("another"))


def named_right(model: Path) -> None:
    model.with_name("another").rename(model)


def cut(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{")


def with_a_huge_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")


def led_away(model: Path) -> None:
    (model / "tokenizer.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize("backend", BACKENDS, ids=["native", "docker"])
@pytest.mark.parametrize(
    ("harm", "told", "within_seconds", "given_up"),
    [
        (renamed, "model_path {} does not exist on this node", 1.0, False),
        (led_away, "ModelRefused: {}/tokenizer.json leads to /etc/passwd", 1.0, True),
        (cut, "ModelCorrupt: {}/model.safetensors: its header is said to have 2 bytes", 2.0, False),
        (with_a_huge_header, "ModelCorrupt: {}/model.safetensors: its header is said to have 18,446", 2.0, False),
    ],
)
async def test_it_is_told_before_anything_is_started(
    worker: Worker, store: EtcdStore, model: Path, backend: dict[str, Any], harm: Callable[[Path], None], told: str,
    within_seconds: float, given_up: bool,
) -> None:  # fmt: skip
    harm(model)
    await worker.start()
    asked = time.monotonic()
    await put(store, served(model, **backend))
    status = await until(store, in_phase(served(model), Phase.FAILED))
    assert time.monotonic() - asked < within_seconds
    assert told.format(model) in status.message
    assert (status.failures, status.given_up, status.pid) == (1, given_up, None)
    assert worker.engines() == [] and not (worker.home / "state/node-1/engines" / status.id).exists()


async def test_a_model_that_is_put_right_is_served_without_a_hand(
    worker: Worker, store: EtcdStore, model: Path
) -> None:
    byte_level_folder(model)
    renamed(model)
    await worker.start()
    wanted = served(model, engine=EngineKind.SIM)
    await put(store, wanted)
    await until(store, in_phase(wanted, Phase.FAILED))
    named_right(model)
    await until(store, in_phase(wanted, Phase.READY))
