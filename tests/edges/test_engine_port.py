"""Where gateways find an engine that was started again, with nobody to tell them: real shims, one after the other."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.engine_shim.port_note import PortNote, note_port, noted_port
from deepinfer.fleet.errors import EngineFailed
from tests.sim_engine import sim_process

QUESTION = EngineCall("POST", "/v1/completions", body=b'{"model": "chat", "prompt": "hello", "max_tokens": 3}')


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


async def answered(client: EngineClient) -> int:
    """Its status; asks again while nobody is there."""
    async with asyncio.timeout(5):
        while True:
            try:
                return (await client.call(QUESTION)).status
            except EngineFailed:
                await asyncio.sleep(0.05)  # nothing tells a client that somebody listens


async def test_a_killed_engine_s_successor_answers_whoever_knew_its_predecessor(tmp_path: Path) -> None:
    async with sim_process(tmp_path) as first:
        client = EngineClient(first.endpoint, only=("chat-aaaaa-0", 1))
        assert await answered(client) == 200
        key = (await client.info()).call_key
        await first.kill()
    async with sim_process(tmp_path) as second:
        assert second.endpoint == first.endpoint
        assert await answered(client) == 200  # its calls' port and key are others
        assert (await client.info()).call_key != key
    await client.close()


async def test_a_port_that_is_taken_is_left_to_who_has_it(tmp_path: Path) -> None:
    async with sim_process(tmp_path) as first:
        await first.kill()
    with socket.create_server(("127.0.0.1", port_of(first.endpoint))):
        async with sim_process(tmp_path) as second:
            assert second.endpoint != first.endpoint
            assert noted_port(tmp_path / "0.port.json", 1) == port_of(second.endpoint)


async def test_another_living_engine_s_port_is_not_shared(tmp_path: Path) -> None:
    async with sim_process(tmp_path, 0) as theirs:
        note_port(tmp_path / "1.port.json", 1, port_of(theirs.endpoint))
        async with sim_process(tmp_path, 1) as ours:
            assert ours.endpoint != theirs.endpoint
            assert (await EngineClient(theirs.endpoint).info()).placement == "chat-aaaaa-0"


def test_an_engine_of_another_epoch_is_not_looked_for_there(tmp_path: Path) -> None:
    file = tmp_path / "port.json"
    note_port(file, 1, 5000)
    assert (noted_port(file, 1), noted_port(file, 2), noted_port(None, 1)) == (5000, 0, 0)
    note_port(file, 2, 5001)
    assert (noted_port(file, 1), noted_port(file, 2)) == (0, 5001)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"epoch": 1, "port": 70000}'])
async def test_a_damaged_note_keeps_no_engine_from_starting(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "port.json"
    file.write_bytes(content)
    assert noted_port(file, 1) == 0
    note_port(file, 1, 5000)
    assert PortNote.model_validate_json(file.read_bytes()).port == 5000


def test_a_note_that_cannot_be_written_keeps_no_engine_from_starting(tmp_path: Path) -> None:
    note_port(tmp_path / "no folder" / "port.json", 1, 5000)
    assert noted_port(tmp_path / "no folder" / "port.json", 1) == 0
