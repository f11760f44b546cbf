"""Whether an engine's prompts can be foreseen, and from which files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_shim.prompt_files import BYTES, FOLDER, PromptFiles, joined, pieces_of, prompt_files
from deepinfer.fleet.launch import ContainerServer, EngineLaunch
from deepinfer.fleet.spec import EngineKind

CONTAINER = ContainerServer(endpoint="127.0.0.1:1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / name).write_text(name)
    return tmp_path


def launch(folder: Path | None, engine: EngineKind = EngineKind.VLLM, **fields: Any) -> EngineLaunch:
    known: dict[str, Any] = {"placement": "a", "epoch": 1, "served_names": ("a",), "device": "cpu", "socket": Path("a")}
    return EngineLaunch(engine=engine, model_path=folder, **known, **fields)


def test_what_does_not_touch_prompts_changes_nothing(folder: Path) -> None:
    files = prompt_files(launch(folder))
    assert files is not None
    assert (files.kind, set(files.files)) == (
        FOLDER,
        {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"},
    )
    for same in (
        launch(folder, EngineKind.SIM),
        launch(folder, EngineKind.LAYER_SHARD),
        launch(folder, container=CONTAINER, engine_args={"max-num-seqs": 7, "hf_overrides": None}),
        launch(folder, engine_args={"tool-call-parser": "hermes", "enable_prompt_embeds": False}),
    ):
        assert prompt_files(same) == files


@pytest.mark.parametrize(
    "engine_args",
    [
        {"tokenizer": "other"},
        {"tokenizer-mode": "slow"},
        {"default_chat_template_kwargs": {"a": 1}},
        {"chat-template": "{{ messages }}"},
        {"chat_template_content_format": "openai"},
        {"enable_prompt_embeds": True},
    ],
    ids=str,
)
def test_what_may_change_prompts_makes_them_unforeseen(folder: Path, engine_args: dict[str, Any]) -> None:
    assert prompt_files(launch(folder, engine_args=engine_args)) is None


def test_a_chat_template_in_a_file_takes_the_place_of_the_folder_s(folder: Path) -> None:
    given = folder / "given"
    given.write_text("given")
    args = {"chat_template": str(given)}
    files = prompt_files(launch(folder, engine_args=args))
    assert files is not None and files.files["chat_template.jinja"] == b"given"
    assert prompt_files(launch(folder, engine_args=args, container=CONTAINER)) is None, "it is another file in there"


def test_folders_that_do_not_say_it_all(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt_oss"}')
    assert prompt_files(launch(folder)) is None
    (folder / "config.json").write_text("{")
    assert prompt_files(launch(folder)) is not None
    (folder / "chat_template.json").write_text("{}")
    assert prompt_files(launch(folder)) is not None
    (folder / "chat_template.jinja").unlink()
    assert prompt_files(launch(folder)) is None, "a processor's template comes before the tokenizer's"
    (folder / "tokenizer.json").unlink()
    assert prompt_files(launch(folder, EngineKind.SIM)) is None
    assert prompt_files(launch(folder / "away", EngineKind.SIM)) is None


def test_without_a_folder_only_a_simulated_engine_can_be_foreseen() -> None:
    assert prompt_files(launch(None, EngineKind.SIM)) == PromptFiles(BYTES)
    assert prompt_files(launch(None, container=CONTAINER)) is None


def test_files_travel_in_pieces_and_differ_by_what_is_in_them() -> None:
    files = PromptFiles(FOLDER, {"a": bytes(3 << 20), "b": b"", "c": b"c"})
    pieces = list(pieces_of(files))
    assert joined(pieces) == files
    assert max(len(piece.content) for piece in pieces) <= 1 << 20
    others = [PromptFiles(BYTES), PromptFiles(FOLDER, {"a": b"bc"}), PromptFiles(FOLDER, {"ab": b"c"})]
    assert len({other.digest for other in (files, *others)}) == 4
