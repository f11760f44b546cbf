"""A node without the engine says so; once it is installed, the deployment that waited starts by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_environments.environment import Environment
from tests.fleet import Fleet, eventually


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """Nothing is installed here."""
    return tmp_path / "fresh-engines"


@pytest.fixture
def fresh(tmp_path: Path, engines: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, engines=engines).running() as fleet:
        yield fleet


def test_a_waiting_deployment_starts_once_its_engine_is_installed(
    fresh: Fleet, engines: Path, vllm_engine: Environment
) -> None:
    fresh.deploy(
        model="smollm2",
        engine="vllm",
        device="cpu",
        max_model_len=1024,
        engine_args={"enforce_eager": True},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    refused = refusal_of(fresh, "smollm2")
    assert 'engine "vllm" is not installed there; run `deepinfer engine install vllm --cpu` on that node' in refused
    assert offered(fresh) == []

    (engines / vllm_engine.name).symlink_to(vllm_engine.folder)  # what an installation ends with
    (replica,) = eventually(lambda: fresh.replicas("smollm2"))
    assert (replica["node"], replica["devices"]) == ("node-1", ["cpu"])
    assert offered(fresh) == [vllm_engine.record.engine.model_dump()]
    fresh.wait_ready("smollm2", 400, as_foreseen=False)
    answer = fresh.openai.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")

    (engines / vllm_engine.name).unlink()
    eventually(lambda: not offered(fresh))
    fresh.delete("smollm2")


def test_an_argument_that_vllm_does_not_have_is_refused_before_anything_starts(
    fresh: Fleet, engines: Path, vllm_engine: Environment
) -> None:
    engines.mkdir(exist_ok=True)
    (engines / vllm_engine.name).symlink_to(vllm_engine.folder)
    fresh.deploy(model="smollm2", engine="vllm", device="cpu", engine_args={"max_num_seq": 8})
    failed = eventually(lambda: status_in(fresh, "smollm2", "failed"), 60)
    version = vllm_engine.record.engine.version
    assert f"vLLM {version} has no argument max_num_seq; did you mean max_num_seqs?" in failed["message"]
    (replica,) = fresh.replicas("smollm2")
    assert (replica["pid"], replica["restarts"]) == (None, 0)
    fresh.delete("smollm2")


def refusal_of(fleet: Fleet, name: str) -> str:
    refusals = eventually(lambda: fleet.get(f"/v1/deployments/{name}")["refusals"])
    return str(refusals["node-1"])


def status_in(fleet: Fleet, name: str, phase: str) -> dict[str, Any]:
    status: dict[str, Any] = fleet.get(f"/v1/deployments/{name}")["status"]
    return status if status["phase"] == phase else {}


def offered(fleet: Fleet) -> list[dict[str, Any]]:
    """The engines with an environment that the node tells of."""
    (node,) = fleet.get("/v1/nodes")
    return [engine for engine in node["engines"] if engine["accelerator"] != "any"]
