"""The access log: what a line tells of a request, and that no request can write a line of its own."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deepinfer.control_plane.gateway import access_log as module
from deepinfer.control_plane.gateway.access_log import CannotLog, LogFile, access_log
from tests.contracts.test_gateway_breakage import fails_at_once, gateway_over, never_ends
from tests.contracts.test_metrics import CHAT, STREAM
from tests.gateway_parts import RunningGateway, until
from tests.hand_made_engine import Answering, HandMadeEngine


@asynccontextmanager
async def logging_gateway(
    file: Path, *answering: Answering
) -> AsyncIterator[tuple[RunningGateway, list[HandMadeEngine]]]:
    """What it logged is in the file at its end."""
    async with access_log(str(file)) as lines, gateway_over(*answering, access_log=lines) as running:
        yield running


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_a_line_tells_what_became_of_a_request(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    async with logging_gateway(file, fails_at_once, STREAM) as (gateway, _):
        headers = {"x-request-id": "mine-1", "authorization": "Bearer very-secret"}
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "very secret"}]}
        answer = await gateway.http.post(f"{CHAT}?api_key=very-secret", json=body, headers=headers)
    (line,) = lines_of(file)
    assert 0 < line.pop("ttft_ms") <= line.pop("total_ms")
    assert line.pop("time").endswith("Z")
    assert line == {
        "request_id": "mine-1",
        "client": "127.0.0.1",
        "key": "",
        "method": "POST",
        "path": CHAT,
        "model": "chat",
        "replica": "chat-aaaaa-1",
        "status": 200,
        "reason": "",
        "attempts": 2,
        "queue_ms": 0.0,
        "prompt_tokens": 13,
        "completion_tokens": 32,
        "bytes": len(answer.content),
        "disconnected": False,
        "continued": False,
        "prefilled_by": "",
    }
    assert "secret" not in file.read_text()


async def test_refused_requests_and_clients_that_left_are_told_too(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    async with logging_gateway(file, never_ends) as (gateway, (engine,)):
        await gateway.ask(model="gpt-9")
        async with gateway.http.stream("POST", CHAT, json={"model": "chat"}) as answer:
            await anext(answer.aiter_raw())
        await engine.cancelled.wait()
    told = [(line["status"], line["reason"], line["model"], line["disconnected"]) for line in lines_of(file)]
    assert told == [(404, "model_not_found", "", False), (499, "", "chat", True)]


async def test_who_changes_the_fleet_is_told_too(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    async with logging_gateway(file) as (gateway, _):
        answer = await gateway.http.post("/v1/deployments", json={"name": "very-secret"})
        await gateway.http.get("/nothing")
        page = (await gateway.http.get("/metrics")).text
    first, second = lines_of(file)
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/deployments", 200)
    assert (first["request_id"], first["bytes"]) == (answer.headers["x-request-id"], len(answer.content))
    assert second["status"] == 404
    assert "secret" not in file.read_text()
    assert 'deepinfer_requests_total{model_name="",path="management",status="200"} 1.0' in page


async def test_no_request_writes_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    async with logging_gateway(file, STREAM) as (gateway, _):
        forged = "%0d%0a%7B%22status%22:200%7D%1b%5b2J"
        await gateway.http.post(f"/v1/{forged}", json={"model": "chat"}, headers={"x-request-id": 'a"}{"'})
        await gateway.http.post("/v1/" + "x" * 5000, json={"model": 'chat\n{"status":200}'})
    first, second = lines_of(file)
    assert first["path"] == f"/v1/{forged}" and first["request_id"].isalnum()
    assert second["path"] == "/v1/" + "x" * 508 and second["model"] == ""


async def test_a_file_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    file, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    async with logging_gateway(file, STREAM) as (gateway, _):
        await gateway.ask()
        await until(lambda: file.read_text())
        file.rename(moved)
        await gateway.ask()
        await until(file.exists)
    assert [len(lines_of(moved)), len(lines_of(file))] == [1, 1]


async def test_a_reader_that_sleeps_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody reads from is full after 64 KiB; what does not fit is left out, and then it goes on."""
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.001)
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    received: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as reader:
            os.set_blocking(reading, True)
            received.extend(reader)

    reader = threading.Thread(target=read)
    async with logging_gateway(pipe, STREAM) as (gateway, _):
        for _ in range(400):
            assert (await gateway.http.post("/v1/" + "x" * 600, json={"model": "none"})).status_code == 404
            await asyncio.sleep(0.001)
        reader.start()
        await gateway.ask()
    await asyncio.to_thread(reader.join)
    lines = [json.loads(line) for line in received]
    assert 60 < len(lines) < 400


async def test_a_file_that_cannot_be_opened_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotLog, match=f"The access log {tmp_path} cannot be opened: Is a directory"):
        async with access_log(str(tmp_path)):
            raise AssertionError("opened a folder")


async def test_a_disk_that_comes_back_is_written_to_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "access.log"))
    (folder / "access.log").unlink()
    folder.rmdir()
    with pytest.raises(CannotLog):
        file.write(b"lost\n")
    folder.mkdir()
    file.write(b"kept\n")
    assert (folder / "access.log").read_bytes() == b"kept\n"
