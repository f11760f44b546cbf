"""What a gateway foresees of a prompt's tokens, from the files of a real shim, against what that shim's engine says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepinfer.control_plane.gateway.sent_stream import NotExact
from deepinfer.control_plane.prompts.probing import asking, mismatch
from deepinfer.control_plane.prompts.reader import PromptReader
from deepinfer.engine_shim.prompt_files import BYTES, FOLDER, PromptFiles
from deepinfer.fleet.errors import EngineFailed
from tests.sim_engine import SimProcess, sim_process
from tests.tokenizer_folders import CHATML, pieces_folder, pretokenized_folder

TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML


@pytest.fixture
async def sims(tmp_path: Path) -> AsyncIterator[list[SimProcess]]:
    """Two of them: one has no model folder, the other's is too large for one message."""
    folder = pretokenized_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TOOLS)
    (folder / "special_tokens_map.json").write_text("{}" + " " * (3 << 20))
    async with sim_process(tmp_path, 0) as plain, sim_process(tmp_path, 1, model=folder) as modelled:
        yield [plain, modelled]


async def test_what_the_files_of_an_engine_say_is_what_it_does(sims: list[SimProcess], tmp_path: Path) -> None:
    for sim, kind in zip(sims, (BYTES, FOLDER), strict=True):
        files = await sim.client.prompt_files((await sim.client.info()).prompt_digest)
        assert files.kind == kind
        assert await mismatch(PromptReader.of(files), asking(sim.client), "chat") == ""
    assert files.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


async def test_an_engine_that_does_something_else_is_found_out(sims: list[SimProcess], tmp_path: Path) -> None:
    plain, modelled = sims
    files = await modelled.client.prompt_files((await modelled.client.info()).prompt_digest)
    other_words = PromptFiles(
        FOLDER, {**files.files, "chat_template.jinja": TOOLS.replace("assistant", "model").encode()}
    )
    reason = await mismatch(PromptReader.of(other_words), asking(modelled.client), "chat")
    assert reason == "of a chat (user) the engine makes other tokens than its files say"
    pieces = pieces_folder(tmp_path / "pieces", "legacy")
    other_tokens = PromptFiles(FOLDER, {"tokenizer.json": (pieces / "tokenizer.json").read_bytes()})
    reason = await mismatch(PromptReader.of(other_tokens), asking(modelled.client), "chat")
    assert reason == "of a text with special tokens around it the engine makes other tokens than its files say"
    reason = await mismatch(PromptReader.of(files), asking(plain.client), "another")
    assert reason == "the engine does not say what tokens it makes: it answered /tokenize with status 404"


async def test_files_that_changed_are_not_taken_for_those_that_the_engine_read(
    sims: list[SimProcess], tmp_path: Path
) -> None:
    client = sims[1].client
    digest = (await client.info()).prompt_digest
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(EngineFailed, match="not those it was started with"):
        await client.prompt_files(digest)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(EngineFailed, match="cannot be foreseen"):
        await client.prompt_files(digest)


async def test_an_engine_that_breaks_meanwhile_is_not_judged() -> None:
    async def broken(path: str, body: dict[str, Any]) -> dict[str, Any]:
        raise EngineFailed

    async def silent(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"count": 3}

    async def refusing(path: str, body: dict[str, Any]) -> dict[str, Any]:
        raise NotExact("it answered no")

    reader = PromptReader.of(PromptFiles(BYTES))
    with pytest.raises(EngineFailed):
        await mismatch(reader, broken, "chat")
    assert "does not say what tokens" in await mismatch(reader, silent, "chat")
    assert await mismatch(reader, refusing, "chat") == "the engine does not say what tokens it makes: it answered no"
