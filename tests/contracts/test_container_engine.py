"""A sidecar beside vLLM's own OpenAI server: the process that runs in a container, without the container.

One server for all tests; the last ones end it. Servers that are not vLLM's are in `edges/test_container_server.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepinfer.agent.models import Models
from deepinfer.engine_environments.environment import Environment
from deepinfer.engine_shim.client import EngineCall, EngineState, GenerateRequest
from deepinfer.engine_shim.engines.vllm.kv_subscription import kv_events_flags
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.kv_mirror import KeySet, KvMirror
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams
from deepinfer.fleet.launch import FAILURE_LINE, ContainerServer
from deepinfer.fleet.places import cache_dir
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from tests.bare_vllm import ON_CPU, BareVllm
from tests.fleet import eventually
from tests.sidecar import Sidecar, sidecar_launch, sidecar_process

pytestmark = pytest.mark.timeout(900)
START_SECONDS = 300
BLOCK, BLOCKS, LONGEST = 32, 200, 1024


@dataclass
class Server:
    """vLLM's processes, as a container would hold them."""

    bare: BareVllm
    kv_events: Path
    members: list[psutil.Process] = field(default_factory=list)

    @property
    def core(self) -> psutil.Process:
        return next(process for process in self.members if "EngineCore" in "".join(process.cmdline()))

    @property
    def seen_from_the_node(self) -> ContainerServer:
        endpoint = f"127.0.0.1:{self.bare.port}"
        return ContainerServer(endpoint=endpoint, kv_events=self.kv_events, pid=self.bare.pid)

    def stop(self) -> None:
        for process in self.members:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self.bare.stop()
        for process in self.members:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def server(vllm_engine: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    smollm2 = DeploymentSpec(model="smollm2", engine=EngineKind.VLLM)
    model = asyncio.run(Models(cache_dir() / "models", os.environ).files(smollm2, lambda line: None))
    with tempfile.TemporaryDirectory() as folder:  # short, for a socket's path has 103 bytes
        flags: dict[str, Any] = {
            "model": model,
            "served_model_name": ["chat", "org/model"],
            "dtype": "float32",
            "max_model_len": LONGEST,
            "enforce_eager": True,
            "block_size": BLOCK,
            "num_gpu_blocks_override": BLOCKS,
            "kv_events_config": json.dumps(kv_events_flags(Path(folder))),
        }
        log = tmp_path_factory.mktemp("vllm") / "log"
        running = Server(BareVllm(vllm_engine.interpreter, log, flags, ON_CPU), Path(folder))
        try:
            eventually(running.bare.is_ready, START_SECONDS)
            parent = psutil.Process(running.bare.pid)
            running.members = [parent, *parent.children(recursive=True)]
            yield running
        finally:
            running.stop()


@pytest.fixture
async def sidecar(server: Server, tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with ready_sidecar(server, tmp_path) as running:
        yield running


@asynccontextmanager
async def ready_sidecar(server: Server, folder: Path) -> AsyncIterator[Sidecar]:
    launch = sidecar_launch(folder, server.seen_from_the_node, stall_seconds=2.0)
    async with sidecar_process(folder, launch) as running:
        await running.ready()
        yield running


class Stream:
    """A running completion that goes past the sidecar, as all do."""

    def __init__(self, server: Server, tokens: int) -> None:
        body = {"model": "chat", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        self._asked = server.bare.url + "/v1/completions", body
        self._first = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def begun(self) -> None:
        await self._first.wait()

    async def _read(self) -> str:
        url, body = self._asked
        line = ""
        async with httpx.AsyncClient(timeout=120) as http, http.stream("POST", url, json=body) as answer:
            async for line in answer.aiter_lines():
                self._first.set()
                if line == "data: [DONE]":
                    break
        return line


@asynccontextmanager
async def streaming(server: Server, tokens: int = 900) -> AsyncIterator[Stream]:
    stream = Stream(server, tokens)
    try:
        await stream.begun()
        yield stream
    finally:
        stream.task.cancel()
        with suppress(asyncio.CancelledError, httpx.TransportError):
            await stream.task


async def complete(server: Server, prompt: list[int]) -> None:
    body = {"model": "chat", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
    async with httpx.AsyncClient(timeout=120) as http:
        (await http.post(server.bare.url + "/v1/completions", json=body)).raise_for_status()


async def test_it_says_what_the_server_is_and_where_calls_go(server: Server, sidecar: Sidecar) -> None:
    info = await sidecar.client.info()
    assert info.http_endpoint == f"127.0.0.1:{server.bare.port}"
    assert (info.engine, info.served_names) == ("vllm", ("chat", "org/model"))
    assert (info.max_model_len, info.kv_block_size, info.kv_blocks) == (LONGEST, BLOCK, BLOCKS)
    assert info.engine_version[:2] == "0." and info.memory_bytes > 1 << 30
    answer = await sidecar.client.call(EngineCall("GET", "/v1/models"))  # past the sidecar
    assert (answer.status, b'"org/model"' in await answer.read()) == (200, True)


async def test_load_rises_and_falls_with_what_runs(server: Server, sidecar: Sidecar) -> None:
    async with streaming(server):
        busy = await sidecar.state(lambda state: state.load.running == 1 and bool(state.load.seconds_per_output_token))
        assert busy.load.kv_blocks_used >= 1
    idle = await sidecar.state(lambda state: state.load.running == 0)
    assert idle.load.kv_blocks_used == 0


async def test_a_typed_request_is_answered(sidecar: Sidecar) -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.0, logprobs=1)
    deltas = [delta async for delta in sidecar.client.generate(GenerateRequest("r", (19556, 665), sampling))]
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert (len(tokens), deltas[-1].finish_reason) == (3, FinishReason.LENGTH)
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == tokens


async def test_a_prompt_just_answered_is_resident_also_for_a_new_sidecar(server: Server, tmp_path: Path) -> None:
    prompt = [7] * BLOCK * 3 + [8]
    wanted = {(0, name) for name in chain(token_bytes(prompt), BLOCK)}

    async def when_resident(sidecar: Sidecar) -> EngineState:
        held = KeySet()
        mirror = KvMirror(held)

        def resident(state: EngineState) -> bool:
            mirror.apply(state)
            return wanted <= held

        return await sidecar.state(resident, kv=True)

    async with ready_sidecar(server, tmp_path) as sidecar:
        await complete(server, prompt)
        before = await when_resident(sidecar)
    async with ready_sidecar(server, tmp_path) as sidecar:
        after = await when_resident(sidecar)
    assert before.digest == after.digest


async def test_a_drain_waits_for_what_runs(server: Server, sidecar: Sidecar) -> None:
    async with streaming(server):
        assert await sidecar.client.drain(1.0) == 1
    async with streaming(server, tokens=60) as stream:
        assert await sidecar.client.drain(60.0) == 0
        assert stream.task.done() and stream.task.result() == "data: [DONE]"


async def failed(sidecar: Sidecar) -> str:
    """The last line of a sidecar whose engine failed."""
    assert await asyncio.wait_for(sidecar.process.wait(), 60) == 1
    return sidecar.log.read_text().splitlines()[-1]


async def test_a_stopped_core_is_found_by_its_missing_tokens(server: Server, sidecar: Sidecar) -> None:
    async with streaming(server):
        await sidecar.state(lambda state: state.load.running == 1)
        server.core.suspend()
        try:
            assert (await failed(sidecar)).startswith(f"{FAILURE_LINE}it computed nothing for")
        finally:
            server.core.resume()


async def test_a_stopped_server_is_found_by_its_silence(server: Server, sidecar: Sidecar) -> None:
    parent = psutil.Process(server.bare.pid)
    parent.suspend()
    try:
        assert (await failed(sidecar)).startswith(f"{FAILURE_LINE}its server has not answered /health for")
    finally:
        parent.resume()


async def test_a_killed_server_is_found(server: Server, sidecar: Sidecar) -> None:
    os.kill(server.bare.pid, signal.SIGKILL)
    assert await failed(sidecar) == f"{FAILURE_LINE}its server does not listen any more"
