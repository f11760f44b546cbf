"""What an agent finds installed before a start, from real folders; and how it hears of a new one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.native.engine_choice import EnginesHere
from deepinfer.agent.node_record import NodeRecord
from deepinfer.engine_environments.environment import FLAGS
from deepinfer.engine_environments.installed import installed_engines
from deepinfer.fleet.errors import EngineNotInstalled, EngineWillNotStart
from deepinfer.fleet.resources import Device, InstalledEngine, Node, Placement
from deepinfer.fleet.spec import DeploymentSpec
from tests.engine_folders import put_environment
from tests.fleet_values import installed, placement

CPU = Device(id="cpu", kind="cpu", name="CPU", memory_bytes=1)
BLACKWELL = Device(id="cuda:0", kind="cuda", name="GeForce", memory_bytes=1, compute_capability="12.0")


def vllm_on(*devices: str, **fields: Any) -> Placement:
    spec = DeploymentSpec.model_validate({"model": "m", "engine": "vllm", **fields})
    return placement().model_copy(update={"spec": spec, "devices": devices})


def test_the_environment_of_the_chosen_engine_is_found(tmp_path: Path) -> None:
    put_environment(tmp_path, installed("vllm", "0.31.0", "cpu"))
    newest = put_environment(tmp_path, installed("vllm", "0.32.0", "cpu"))
    environment = EnginesHere(tmp_path, (CPU,)).environment_for(vllm_on("cpu", engine_args={"max_num_seqs": 2}))
    assert environment is not None
    assert (environment.folder, environment.interpreter) == (newest, newest / "bin" / "python")


def test_deepinfers_own_engines_need_none(tmp_path: Path) -> None:
    assert EnginesHere(tmp_path, (CPU,)).environment_for(vllm_on("cpu", engine="sim")) is None


def test_what_is_not_installed_may_come(tmp_path: Path) -> None:
    with pytest.raises(EngineNotInstalled, match="deepinfer engine install vllm --cpu"):
        EnginesHere(tmp_path, (CPU,)).environment_for(vllm_on("cpu"))


def test_a_line_that_refuses_is_final_and_quoted(tmp_path: Path) -> None:
    put_environment(tmp_path, installed("vllm", "0.10.2", "cuda"))
    with pytest.raises(EngineWillNotStart, match=r"SM 12\.0.*engine_compatibility\.toml line \d+: \{ refuse"):
        EnginesHere(tmp_path, (CPU, BLACKWELL)).environment_for(vllm_on("cuda:0"))


def test_an_unknown_argument_is_final(tmp_path: Path) -> None:
    put_environment(tmp_path, installed("vllm", "0.32.0", "cpu"))
    with pytest.raises(EngineWillNotStart, match="did you mean max_num_seqs"):
        EnginesHere(tmp_path, (CPU,)).environment_for(vllm_on("cpu", engine_args={"max_num_seq": 2}))


def test_a_damaged_environment_says_how_to_mend_it(tmp_path: Path) -> None:
    folder = put_environment(tmp_path, installed("vllm", "0.32.0", "cpu"))
    (folder / FLAGS).write_text("{")
    with pytest.raises(EngineNotInstalled, match="`deepinfer engine remove vllm-"):
        EnginesHere(tmp_path, (CPU,)).environment_for(vllm_on("cpu"))


async def test_a_node_hears_of_engines_that_come_and_go(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engine = installed("vllm", "0.32.0", "cpu")
    record = NodeRecord(node_with(installed_engines(engines)), engines, Daemon({"DOCKER_HOST": "unix:///nowhere"}, "x"))
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(record.follow_engines())
        folder = put_environment(tmp_path / "elsewhere", engine)
        engines.mkdir(exist_ok=True)
        (engines / folder.name).symlink_to(folder)
        await record.changed.wait()
        assert record.node.engines[-1] == engine
        record.changed.clear()
        (engines / folder.name).unlink()
        await record.changed.wait()
        assert engine not in record.node.engines
        following.cancel()


async def test_a_folder_that_is_replaced_is_watched_again(tmp_path: Path) -> None:
    engines, engine = tmp_path / "engines", installed("vllm", "0.32.0", "cpu")
    engines.mkdir()
    record = NodeRecord(node_with(installed_engines(engines)), engines, Daemon({"DOCKER_HOST": "unix:///nowhere"}, "x"))
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(record.follow_engines())
        put_environment(tmp_path / "new", engine)
        engines.rmdir()
        (tmp_path / "new").rename(engines)
        await record.changed.wait()
        assert record.node.engines[-1] == engine
        following.cancel()


def node_with(engines: tuple[InstalledEngine, ...]) -> Node:
    return Node(name="a", instance="i", agent_endpoint="127.0.0.1:1", devices=(CPU,), engines=engines, version="0")
