"""The simulated engine as a server: what clients, scrapers and KV followers find behind vLLM's command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepinfer.engine_shim.engines.vllm.kv_subscription import kv_events_flags
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.kv_contents import BlockKey
from tests.fleet import free_port
from tests.kv_reader import GRAIN, following, keys, until
from tests.process_lines import ProcessLines
from tests.tokenizer_folders import byte_level_folder

MODULE = "deepinfer.engine_shim.engines.sim_server"
WHOLE = {"ignore_eos": True}
PROMPT = "The quick brown fox jumps over the lazy dog."


@dataclass
class Server:
    url: str
    process: ProcessLines

    @property
    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def cores(self) -> list[psutil.Process]:
        return psutil.Process(self.process.process.pid).children()

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.get(self.url + path)

    async def metrics(self) -> dict[str, float]:
        page = (await self.get("/metrics")).text
        return {sample.name: sample.value for f in text_string_to_metric_families(page) for sample in f.samples}


@asynccontextmanager
async def serving(*words: str) -> AsyncIterator[Server]:
    port = free_port()
    process = await started(*words, "--host=127.0.0.1", "--port", str(port))
    cores: list[psutil.Process] = []
    try:
        await process.line_with("Started server process")
        server = Server(f"http://127.0.0.1:{port}", process)
        while not await answers(server):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)  # it says so a moment before it listens
        cores = server.cores()
        yield server
    finally:
        for core in cores:
            with suppress(psutil.NoSuchProcess):
                core.kill()  # like vLLM's, it would outlive its server's kill
        await process.end(signal.SIGKILL)


async def answers(server: Server) -> bool:
    try:
        return (await server.get("/health")).is_success
    except httpx.TransportError:
        return False


async def started(*words: str) -> ProcessLines:
    return await ProcessLines.start(MODULE, *words, environment=os.environ)


async def test_a_client_streams_a_chat_under_every_served_name() -> None:
    names = ("--served-model-name", "chat", "other")
    async with serving("serve", "org/model", *names, "--max-model-len=500") as server, server.client as client:
        assert [model.id async for model in client.models.list()] == ["chat", "other"]
        chunks = await client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": PROMPT}], max_tokens=8, stream=True, extra_body=WHOLE
        )
        text = [chunk.choices[0].delta.content or "" async for chunk in chunks]
        assert "".join(text)
        assert len(text) >= 8


async def test_a_folder_gives_its_tokenizer(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "model")
    async with serving(str(folder)) as server, server.client as client:
        answer = await client.completions.create(model=str(folder), prompt="dog", max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens < len(b"dog")


async def test_the_metrics_count_what_it_did() -> None:
    async with serving("m", "--seconds-per-output-token", "0.001", "--block-size", "8") as server:
        assert (await server.get("/version")).json()["version"]
        before = await server.metrics()
        assert before["vllm:num_requests_running"] == before["vllm:generation_tokens_total"] == 0
        async with server.client as client:
            await client.completions.create(model="m", prompt=PROMPT, max_tokens=20, extra_body=WHOLE)
            await client.completions.create(model="m", prompt=PROMPT, max_tokens=20, extra_body=WHOLE)
        after = await server.metrics()
    size = len(PROMPT.encode())
    assert after["vllm:prompt_tokens_total"] == after["vllm:prefix_cache_queries_total"] == 2 * size
    assert after["vllm:prefix_cache_hits_total"] == size // 8 * 8
    assert after["vllm:generation_tokens_total"] == 40
    assert after["vllm:inter_token_latency_seconds_count"] == 38
    assert after["vllm:inter_token_latency_seconds_sum"] >= 38 * 0.001
    assert after["vllm:request_prefill_time_seconds_count"] == 2
    assert after["vllm:cache_config_info"] == 1


async def test_a_client_that_hangs_up_ends_its_request() -> None:
    async with serving("m", "--max-model-len", "8000") as server, server.client as client:
        async with await client.completions.create(model="m", prompt="hi", max_tokens=7000, stream=True) as chunks:
            await anext(aiter(chunks))
            assert (await server.metrics())["vllm:num_requests_running"] == 1
        async with asyncio.timeout(20):
            while (await server.metrics())["vllm:num_requests_running"]:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)


async def test_a_killed_core_makes_it_unhealthy_and_ends_streams_with_an_error() -> None:
    async with serving("m", "--core-process") as server, server.client as client:
        chunks = await client.completions.create(model="m", prompt="hi", max_tokens=5000, stream=True)
        await anext(aiter(chunks))
        for core in server.cores():
            core.kill()
        with pytest.raises(openai.APIError):
            async for _ in chunks:
                pass
        assert (await server.get("/health")).status_code == 503
        with pytest.raises(openai.InternalServerError, match="was killed by SIGKILL"):
            await client.completions.create(model="m", prompt="hi")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_it_lets_a_stream_end(number: signal.Signals) -> None:
    async with serving("m", "--core-process") as server, server.client as client:
        cores = server.cores()
        chunks = await client.completions.create(model="m", prompt="hi", max_tokens=50, stream=True, extra_body=WHOLE)
        await anext(aiter(chunks))
        server.process.process.send_signal(number)
        assert [chunk async for chunk in chunks][-1].choices[0].finish_reason == "length"
        assert await server.process.ended() == 0
        assert not psutil.wait_procs(cores, timeout=10)[1]


async def test_it_can_be_stopped_while_it_loads() -> None:
    process = await started("m", "--load-seconds=600", "--port", str(free_port()))
    await process.line_with("Starting to load model")
    assert await process.end(signal.SIGTERM) == 0


async def test_its_kv_contents_can_be_followed_and_replayed() -> None:
    with tempfile.TemporaryDirectory() as name:  # short, for a socket's path has 103 bytes
        folder = Path(name)
        config = json.dumps(kv_events_flags(folder))
        small = ("--block-size=4", "--kv-blocks=16")
        async with serving("m", f"--kv-events-config={config}", *small) as server, server.client as client:
            async with following(folder) as contents:
                await client.completions.create(model="m", prompt=PROMPT, max_tokens=1)
                await until(contents, lambda: len(contents) == len(PROMPT) // 4)
                await client.completions.create(
                    model="m", prompt=PROMPT[::-1], max_tokens=1
                )  # there is no room for both
                await until(contents, lambda: keys(contents) >= blocks_of(PROMPT[::-1]))
                assert len(contents) <= 16
                live = contents.digest
            async with following(folder) as late:
                await until(late, lambda: late.digest == live)


def blocks_of(text: str) -> set[BlockKey]:
    return {(0, name) for name in chain(token_bytes(text.encode()), GRAIN)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["serve"], "name the model"),
        (["/no/such/folder"], "there is no model folder /no/such/folder"),
        (["m", "--kv_blocks", "1"], "argument --kv-blocks: Input should be greater than or equal to 2"),
        (["m", "--kv-events-config", "{"], "argument --kv-events-config"),
    ],
)
async def test_wrong_flags_end_it_with_2_and_a_sentence(words: list[str], said: str) -> None:
    process = await started(*words)
    assert await process.ended() == 2
    assert said in process.text


async def test_flags_of_vllm_that_change_nothing_are_taken() -> None:
    flags = ["--dtype=bfloat16", "--tensor-parallel-size", "2", "--gpu-memory-utilization=0.8", "--no-enforce-eager"]
    async with serving("serve", "--model", "m", *flags, "--trust_remote_code", "--max_num_seqs=3") as server:
        assert (await server.get("/v1/models")).json()["data"][0]["id"] == "m"


async def test_a_port_that_is_taken_is_told() -> None:
    async with serving("m") as server:
        process = await started("m", "--host=127.0.0.1", "--port", server.url.rpartition(":")[2])
        assert await process.ended() == 1
        assert "take another --port" in process.text
