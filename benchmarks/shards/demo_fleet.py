"""The fleet of the demo: a control plane and three workers on this machine, each capped below what the model needs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.free_port import free_port
from deepinfer.cli.failures import OperationFailed, ServerNotReachable
from deepinfer.cli.processes import AGENT, CONTROL_PLANE
from deepinfer.cli.server import Server
from deepinfer.cli.supervision import Child, Children
from deepinfer.cli.views import Outcome, Progress
from deepinfer.cli.waiting import Settling, look
from deepinfer.fleet.pipeline import Layout

CAPS_MB: Final = {"a": 200, "b": 320, "c": 320}
"""All of SmolLM2 for one request of `CONTEXT` tokens needs more than the largest of them offers; any two hold it."""
CONTEXT: Final = 1024
NAME: Final = "smollm2"
_LOOK_EVERY_SECONDS = 0.1

Show = Callable[[str], None]


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, and when it came."""

    text: str
    at: float


class DemoFleet:
    """Its processes are `children`, its files lie below `home`."""

    def __init__(self, children: Children, home: Path) -> None:
        self._children, self._home = children, home
        self._etcd, port = free_port(), free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._config = home / "deepinfer.toml"
        self._config.write_text(f"[etcd]\nport = {self._etcd}\n[serve]\nport = {port}\n")
        self._server = Server(self._url, timeout=5)
        self._layouts: Child | None = None

    async def come_up(self, show: Show) -> None:
        """Returns when the model can be asked."""
        config = ("-c", str(self._config))
        self._children.start("control plane", CONTROL_PLANE, *config)
        while not self._server.is_ready():
            show("starting the control plane")
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        self._layouts = self._children.start("layouts", "benchmarks.shards.layouts", str(self._etcd))
        for name, megabytes in CAPS_MB.items():
            cap = ("--max-vram-mb", str(megabytes))
            worker = self._children.start(f"worker {name}", AGENT, *config, "-n", name, *cap)
            while not worker.has_said(f"deepinfer worker {name}: ready"):
                show(f"starting worker {name}, capped at {megabytes} MB")
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
        await self._deploy(show)

    async def _deploy(self, show: Show) -> None:
        fields = {
            "model": NAME,
            "engine": "layer-shard",
            "pipeline": {"stages": len(CAPS_MB)},
            "max_model_len": CONTEXT,
            "engine_args": {"threads": max(1, (os.cpu_count() or 1) // len(CAPS_MB))},
        }
        self._server.create({"name": NAME, **fields})
        settling, progress = Settling(), Progress(Outcome.PENDING, "")
        while not settling.final(progress, time.monotonic()):
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            try:
                progress = look(self._server, NAME).progress
            except ServerNotReachable:  # a busy machine
                continue
            show(progress.sentence)
        if progress.outcome is not Outcome.READY:
            raise OperationFailed(progress.sentence)

    def layout(self) -> Layout:
        """The newest one."""
        assert self._layouts is not None
        lines = [line for line in self._layouts.log.read_text().splitlines() if line.startswith("{")]
        return Layout.model_validate_json(lines[-1])

    def kill_a_stage(self, placement: str) -> int:
        """The process id that was killed with SIGKILL."""
        pid = int(next(replica["pid"] for replica in self._server.replicas() if replica["id"] == placement))
        os.kill(pid, signal.SIGKILL)
        return pid

    async def answer(self, question: str, tokens: int) -> AsyncIterator[Piece]:
        """As it comes."""
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
        }
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False) as http,
            http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response,
        ):
            if response.is_error:
                raise OperationFailed((await response.aread()).decode())
            async for line in response.aiter_lines():
                if text := _text_of(line):
                    yield Piece(text, time.perf_counter())

    def close(self) -> None:
        self._server.__exit__()


def _text_of(line: str) -> str:
    """Of one event of the stream."""
    data = line.removeprefix("data: ")
    if data == line or data == "[DONE]":
        return ""
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise OperationFailed(str(event["error"]))
    return str(event["choices"][0]["delta"].get("content") or "") if event["choices"] else ""
