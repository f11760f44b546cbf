"""EngineService between a real shim process with a simulated engine and real clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_shim.client import Answer, EngineCall, EngineClient, GenerateRequest
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.listening import add_loopback_port
from deepinfer.engine_shim.server import engine_server
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet.errors import EngineFailed, InvalidRequest
from deepinfer.fleet.launch import EX_CONFIG, EngineLaunch
from deepinfer.fleet.spec import EngineKind
from tests.sim_engine import SimProcess, sim_process


@pytest.fixture
async def sim(tmp_path: Path) -> AsyncIterator[SimProcess]:
    async with sim_process(tmp_path, seconds_per_output_token=0.005, block_size=4) as sim:
        yield sim


def completion(prompt: str, **fields: Any) -> EngineCall:
    body = {"model": "chat", "prompt": prompt, "max_tokens": 20, "ignore_eos": True} | fields
    return EngineCall("POST", "/v1/completions", headers=((b"x", b"y"),), body=json.dumps(body).encode())


async def text(answer: Answer) -> str:
    return str(json.loads(await answer.read())["choices"][0]["text"])


async def until(states: AsyncIterator[EngineState], running: int) -> EngineState:
    async for state in states:
        if state.load.running == running:
            return state
    raise AssertionError("the engine ended")


async def test_many_requests_share_a_stream_and_get_their_own_answers(sim: SimProcess) -> None:
    prompts = [f"question {n}" for n in range(50)]
    alone = {prompt: await text(await sim.client.call(completion(prompt))) for prompt in prompts[:3]}
    answers = await asyncio.gather(*(sim.client.call(completion(prompt)) for prompt in prompts))
    texts = await asyncio.gather(*map(text, answers))
    assert [answer.status for answer in answers] == [200] * 50
    assert dict(zip(prompts[:3], texts, strict=False)) == alone
    assert len(set(texts)) > 25


async def test_info_says_who_it_is_on_both_ways_in(sim: SimProcess) -> None:
    over_socket = await sim.client.info()
    assert (over_socket.placement, over_socket.epoch, over_socket.pid) == ("chat-aaaaa-0", 1, sim.process.pid)
    assert (over_socket.served_names, over_socket.kv_block_size) == (("chat", "org/model"), 4)
    assert over_socket.endpoint.startswith("127.0.0.1:")
    gateway = EngineClient(over_socket.endpoint)
    assert await gateway.info() == over_socket
    await gateway.close()


async def test_a_cancelled_answer_stops_the_engine(sim: SimProcess) -> None:
    async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
        answer = await sim.client.call(completion("long", stream=True, max_tokens=4000))
        await until(states, 1)
        answer.cancel()
        answer.cancel()
        state = await until(states, 0)
        assert (state.load.waiting, state.load.kv_blocks_used) == (0, 0)
        with pytest.raises(EngineFailed, match="cancelled"):
            await answer.read()


async def test_a_caller_that_gives_up_before_the_head_stops_the_engine(sim: SimProcess) -> None:
    async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(sim.client.call(completion("long", max_tokens=4000)))
            await until(states, 1)
            waiting.cancel()
        await until(states, 0)


async def test_a_client_that_goes_away_stops_its_requests(sim: SimProcess) -> None:
    gone = EngineClient(sim.endpoint)
    async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
        await asyncio.gather(*(gone.call(completion(f"{n}", stream=True, max_tokens=4000)) for n in range(3)))
        await until(states, 3)
        await gone.close()
        await until(states, 0)


async def test_killing_the_engine_fails_every_open_answer(sim: SimProcess) -> None:
    streaming = [await sim.client.call(completion(f"{n}", stream=True, max_tokens=4000)) for n in range(3)]
    waiting = asyncio.gather(sim.client.call(completion("w", max_tokens=4000)), return_exceptions=True)
    async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
        await until(states, 4)
        sim.process.kill()
        with pytest.raises(EngineFailed):
            async for _ in states:
                pass
    for answer in streaming:
        with pytest.raises(EngineFailed, match=sim.client.target):
            await answer.read()
    assert [type(error) for error in await waiting] == [EngineFailed]
    with pytest.raises(EngineFailed):
        await sim.client.call(completion("after"))
    with pytest.raises(EngineFailed):
        await sim.client.info()


async def test_a_client_connects_again_when_the_engine_is_back(tmp_path: Path) -> None:
    async with sim_process(tmp_path) as first:
        client = EngineClient(f"unix:{tmp_path / '0.sock'}")
        await client.call(completion("a"))
        await first.kill()
        async with sim_process(tmp_path):  # on the socket the killed one left behind
            await client.info(wait_for_ready=True)
            assert (await client.call(completion("b"))).status == 200
        await client.close()


async def test_watch_tells_contents_as_a_snapshot_and_changes(sim: SimProcess) -> None:
    await (await sim.client.call(completion("0123456789abcdef", max_tokens=1))).read()
    async with aclosing(sim.client.watch(kv=True)) as states:  # type: ignore[type-var]
        first = await anext(states)
        assert (first.snapshot, first.phase) == (True, ShimPhase.READY)
        assert list(first.stored[0]) == chain(token_bytes(b"0123456789abcdef"), 4)
        await (await sim.client.call(completion("0123456789abWXYZ", max_tokens=1))).read()
        change = await anext(state async for state in states if state.stored)
        assert list(change.stored[0]) == chain(token_bytes(b"0123456789abWXYZ"), 4)[-1:]
        assert change.sequence > first.sequence
        assert not change.snapshot
        assert change.boot_epoch == first.boot_epoch


async def test_a_watch_that_does_not_ask_for_contents_is_told_none(sim: SimProcess) -> None:
    await (await sim.client.call(completion("0123456789abcdef", max_tokens=1))).read()
    async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
        told = [await anext(states)]
        answer = await sim.client.call(completion("0123456789abWXYZ", max_tokens=4000, stream=True))
        told.append(await until(states, 1))
        with pytest.raises(TimeoutError):  # blocks come all the time, and nobody wants to know
            async with asyncio.timeout(1.5):
                await anext(states)
        answer.cancel()
    assert told[1].load.running == 1
    assert all((s.sequence, s.digest, s.stored, s.removed, s.groups) == (0, 0, {}, {}, ()) for s in told)


async def test_drain_lets_what_runs_finish_and_takes_nothing_new(sim: SimProcess) -> None:
    running = await sim.client.call(completion("last", stream=True, max_tokens=60))
    async with asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(sim.client.drain(30))
        async with aclosing(sim.client.watch()) as states:  # type: ignore[type-var]
            await anext(state async for state in states if state.phase is ShimPhase.DRAINING)
        refused = await sim.client.call(completion("new"))
        assert (refused.status, dict(refused.headers)[b"retry-after"]) == (503, b"1")
        assert json.loads(await refused.read())["error"]["code"] == "engine_not_ready"
        assert (await running.read()).endswith(b"data: [DONE]\n\n")
    assert drained.result() == 0


async def test_drain_says_what_is_unfinished_at_its_deadline(sim: SimProcess) -> None:
    answer = await sim.client.call(completion("long", stream=True, max_tokens=4000))
    assert await sim.client.drain(0.05) == 1
    answer.cancel()


async def test_typed_generation(sim: SimProcess) -> None:
    async def deltas(prompt: str | tuple[int, ...], **sampling: Any) -> list[Any]:
        request = GenerateRequest("r", prompt, SamplingParams(**{"max_tokens": 9, "ignore_eos": True} | sampling))
        return [delta async for delta in sim.client.generate(request)]

    of_text, of_tokens = await deltas("hello"), await deltas(tuple(b"hello"), logprobs=2)
    assert "".join(delta.text for delta in of_text) == "".join(delta.text for delta in of_tokens)
    assert (len(of_text), of_text[-1].finish_reason) == (9, FinishReason.LENGTH)
    assert [len(entry.top) for delta in of_tokens for entry in delta.logprobs] == [2] * 9
    with pytest.raises(InvalidRequest, match="maximum context length is 8192"):
        await deltas("a" * 9000)


async def test_sigterm_ends_it_at_once_and_leaves_nothing(sim: SimProcess, tmp_path: Path) -> None:
    answer = await sim.client.call(completion("long", stream=True, max_tokens=4000))
    sim.process.terminate()
    assert await sim.process.wait() == 0
    assert not (tmp_path / "0.sock").exists()
    with pytest.raises(EngineFailed):
        await answer.read()


class Started:
    """A shim that may refuse to start."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.launch = EngineLaunch.model_validate(
            {
                "placement": "chat-aaaaa-0",
                "epoch": 1,
                "engine": EngineKind.SIM,
                "served_names": ("chat",),
                "model_path": None,
                "device": "cpu",
                "socket": folder / "shim.sock",
            }
            | fields
        )
        self.file = folder / "launch.json"
        self.file.write_bytes(self.launch.to_json())

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deepinfer.engine_shim", str(self.file), stderr=asyncio.subprocess.PIPE
        )

    async def ended(self) -> tuple[int | None, str]:
        process = await self.start()
        _, errors = await process.communicate()
        return process.returncode, errors.decode()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "vllm"}, "vLLM cannot be imported here"),
        ({"engine_args": {"kv_block": 1}}, "Did you mean kv_blocks?"),
        ({"host": "0.0.0.0"}, "loopback addresses only"),  # noqa: S104 - that it is refused
        ({"engine": "layer-shard"}, "needs a model folder"),
        ({"engine": "layer-shard", "model_path": "."}, "has no tokenizer.json"),
        ({"socket": "/tmp/" + "x" * 120}, "use a shorter state folder"),  # noqa: S108 - never made
    ],
)
async def test_a_refused_spec_ends_with_one_line_and_ex_config(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    status, errors = await Started(tmp_path, **fields).ended()
    assert status == EX_CONFIG
    assert words in errors.splitlines()[-1]
    assert "Traceback" not in errors


async def test_a_watcher_hears_how_a_start_goes_and_why_it_failed(tmp_path: Path) -> None:
    status = ShimStatus(Started(tmp_path).launch)
    server = engine_server(status)
    client = EngineClient(add_loopback_port(server, "127.0.0.1"))
    await server.start()
    seen = []
    async for state in client.watch():
        seen.append((state.phase, state.message))
        if len(seen) == 1:
            status.progress("reading the weights")
        if len(seen) == 2:
            status.fail("the weights are torn")
    assert seen == [
        (ShimPhase.STARTING, "starting"),
        (ShimPhase.STARTING, "reading the weights"),
        (ShimPhase.FAILED, "the weights are torn"),
    ]
    await client.close()
    await server.stop(None)


async def test_while_it_starts_it_says_so_and_can_be_stopped(tmp_path: Path) -> None:
    started = Started(tmp_path, engine_args={"load_seconds": 600.0})
    client = EngineClient(f"unix:{started.launch.socket}")
    process = await started.start()
    info = await client.info(timeout_seconds=30, wait_for_ready=True)
    assert (info.phase, info.message) == (ShimPhase.STARTING, "simulating the loading of a model")
    refused = await client.call(completion("too early"))
    assert refused.status == 503
    await client.close()
    os.kill(process.pid, signal.SIGTERM)
    assert await process.wait() == 0


async def test_a_socket_that_somebody_answers_on_is_left_alone(sim: SimProcess, tmp_path: Path) -> None:
    status, errors = await Started(tmp_path, socket=tmp_path / "0.sock").ended()
    assert status == 1
    assert "Another shim answers" in errors
    assert (await sim.client.info()).pid == sim.process.pid


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "0.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    async with sim_process(tmp_path) as sim:
        assert (await sim.client.info()).pid == sim.process.pid
        assert path.stat().st_mode & 0o077 == 0
