"""Requests find the replica that holds their prompt, over real shims: what is known, foreseen, said, and mended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deepinfer.control_plane.router.connection import Connection
from deepinfer.fleet.spec import RoutingPolicy
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.sim_engine import SimProcess, sim_processes

SYSTEM = "You are the oracle of a small island in the north, and you answer in riddles. " * 8
SPEED = {"prefill_tokens_per_second": 4000, "seconds_per_output_token": 0.004, "block_size": 16, "kv_blocks": 4096}


@asynccontextmanager
async def kv_gateway(
    folder: Path, count: int = 2, routing: RoutingPolicy = RoutingPolicy.KV, **engine_args: Any
) -> AsyncIterator[tuple[RunningGateway, list[SimProcess]]]:
    async with (
        sim_processes(folder, count, **{**SPEED, **engine_args}) as sims,
        running_gateway(fleet_of(*(sim.endpoint for sim in sims), routing=routing)) as gateway,
    ):
        await until(lambda: len(gateway.replicas.ready("chat")) == count)
        if routing is RoutingPolicy.KV and count > 1:
            await until(lambda: all(is_known(connection) for connection in gateway.replicas.ready("chat")))
        yield gateway, sims


def is_known(connection: Connection) -> bool:
    return connection.prompts.reader is not None and not connection.outlook.doubt(time.monotonic())


async def ask(gateway: RunningGateway, *turns: str, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """What was decided, with the answer's text and its cached tokens."""
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": SYSTEM}]
    messages += [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    body = {"model": "chat", "messages": messages, "max_tokens": 8, "ignore_eos": True, **fields}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = await gateway.http.post("/v1/chat/completions", json=body, headers={"x-deepinfer-explain": "1"})
    assert answer.status_code == 200, answer.text
    decided: dict[str, Any] = json.loads(answer.headers["x-deepinfer-routing"])
    assert answer.headers["x-deepinfer-replica"] == decided["chosen"]
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:].startswith("{")]
    whole = chunks if stream else [answer.json()]
    decided["usage"] = next(chunk["usage"] for chunk in reversed(whole) if chunk.get("usage"))
    decided["cached"] = decided["usage"]["prompt_tokens_details"]["cached_tokens"]
    decided["id"] = answer.headers["x-request-id"]
    return decided


async def settled(gateway: RunningGateway) -> None:
    """All that the engines hold has been told: nothing came for longer than they keep anything to themselves."""
    before: list[int] = []
    for _ in range(40):
        blocks = [connection.outlook.shelf.blocks for connection in gateway.replicas.ready("chat")]
        if blocks == before:
            return
        before = blocks
        await asyncio.sleep(0.25)


async def test_a_conversation_stays_where_its_blocks_are_and_that_is_foreseen_exactly(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path, 3) as (gateway, _):
        turns = ["Where is the lighthouse?"]
        first = await ask(gateway, *turns)
        assert first["candidates"][0]["cached_known_by"] == "kv"
        for _ in range(4):
            turns += ["Behind the last wave.", "And who keeps it, when the fog comes?"]
            await settled(gateway)
            told = await ask(gateway, *turns)
            assert told["chosen"] == first["chosen"]
            assert told["prompt_tokens"] == told["usage"]["prompt_tokens"]
            assert told["foreseen"]["cached_tokens"] == told["cached"] > 600


async def test_a_stranger_with_the_same_begin_goes_there_too_and_one_with_another_does_not(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, _):
        first = await ask(gateway, "Where is the lighthouse?")
        await settled(gateway)
        assert (await ask(gateway, "What is the weather?"))["chosen"] == first["chosen"]
        messages = [{"role": "user", "content": "Something else entirely, at some length. " * 20}]
        other = await ask(gateway, messages=messages)
        assert other["cached"] == 0 and other["chosen"] != first["chosen"]


async def test_the_policy_of_a_deployment_may_change_while_it_runs(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, sims):
        endpoints = [sim.endpoint for sim in sims]
        gateway.replicas.update(fleet_of(*endpoints, routing=RoutingPolicy.ROUND_ROBIN))
        chosen = [(await ask(gateway, "Where?"))["chosen"] for _ in range(4)]
        assert chosen[0] == chosen[2] != chosen[1] == chosen[3]
        gateway.replicas.update(fleet_of(*endpoints, routing=RoutingPolicy.SESSION))
        in_session = [(await ask(gateway, f"Where? {n}", user="mira"))["chosen"] for n in range(4)]
        assert len(set(in_session)) == 1
        gateway.replicas.update(fleet_of(*endpoints))
        await until(lambda: all(is_known(connection) for connection in gateway.replicas.ready("chat")))
        told = await ask(gateway, "Where?")
        assert told["policy"] == "kv" and told["cached"] == told["foreseen"]["cached_tokens"] > 600


async def test_a_second_replica_makes_the_first_one_s_contents_known(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (_, sims), running_gateway(fleet_of(sims[0].endpoint)) as other:
        await until(lambda: len(other.replicas.ready("chat")) == 1)
        (alone,) = other.replicas.ready("chat")
        assert (await ask(other, "Where?"))["why"] == "no other replica could answer it"
        assert not alone.wants_contents
        other.replicas.update(fleet_of(*(sim.endpoint for sim in sims)))
        await until(lambda: len(other.replicas.ready("chat")) == 2)
        await until(lambda: all(is_known(connection) for connection in other.replicas.ready("chat")))
        told = await ask(other, "Where?")
        assert told["chosen"] == alone.placement and told["foreseen"]["cached_tokens"] == told["cached"] > 600


async def test_a_gateway_that_has_just_started_knows_all_that_is_held(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, sims):
        first = await ask(gateway, "Where is the lighthouse?")
        await settled(gateway)
        async with running_gateway(fleet_of(*(sim.endpoint for sim in sims))) as second:
            await until(lambda: len(second.replicas.ready("chat")) == 2)
            await until(lambda: all(is_known(connection) for connection in second.replicas.ready("chat")))
            told = await ask(second, "Where is the lighthouse?")
            assert (told["chosen"], told["cached"]) == (first["chosen"], told["foreseen"]["cached_tokens"])


async def test_why_a_request_went_where_it_went_can_be_asked_and_is_counted(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, _):
        for number in range(3):
            told = await ask(gateway, f"Where is it? {number}", stream=number != 1)
            await settled(gateway)
        explained = (await gateway.http.get(f"/v1/routing/{told['id']}")).json()
        assert explained["chosen"] == told["chosen"]
        assert explained["came"]["cached_tokens"] == told["cached"]
        assert 0 < explained["came"]["first_token_seconds"] < 10
        unknown = await gateway.http.get("/v1/routing/nothing")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_known")
        page = (await gateway.http.get("/metrics")).text
        figures = dict(line.rsplit(" ", 1) for line in page.splitlines() if f'replica="{told["chosen"]}"' in line)
        labels = f'{{replica="{told["chosen"]}"}}'
        assert float(figures[f"deepinfer_router_cached_tokens_total{labels}"]) > 1200
        assert (
            figures[f"deepinfer_router_cached_tokens_total{labels}"]
            == (figures[f"deepinfer_router_cached_tokens_foreseen_total{labels}"])
        )
        assert figures[f'deepinfer_router_index_used{{replica="{told["chosen"]}",reason=""}}'] == "1.0"


async def test_a_stopped_engine_is_left_alone_within_two_seconds(tmp_path: Path) -> None:
    """All of its processes, so that no word of it tells: what is late there does."""
    async with kv_gateway(tmp_path) as (gateway, sims):
        first = await ask(gateway, "Where is the lighthouse?")
        await settled(gateway)
        stopped = sims[int(first["chosen"][-1])].process.pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            stuck = [asyncio.create_task(ask(gateway, "Who is there?"))]
            await asyncio.sleep(2)
            told = await asyncio.wait_for(ask(gateway, "Who is there?"), 10)
            assert told["chosen"] != first["chosen"]
            late = next(c for c in told["candidates"] if c["replica"] == first["chosen"])
            assert late["terms"]["overdue"] > 1 and late["cached_tokens"] > 600
        finally:
            os.kill(stopped, signal.SIGCONT)
        await asyncio.gather(*stuck)
        await until(lambda: not gateway.replicas.ready("chat")[0].in_flight)
        assert (await ask(gateway, "Who is there?"))["foreseen"]["cached_tokens"] > 600


async def test_a_cache_that_was_emptied_or_an_engine_begun_anew_is_known(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, sims):
        first = await ask(gateway, "Where is the lighthouse?")
        await settled(gateway)
        (holder,) = (c for c in gateway.replicas.ready("chat") if c.placement == first["chosen"])
        assert holder.outlook.shelf.blocks
        await sims[int(first["chosen"][-1])].kill()
        await until(lambda: len(gateway.replicas.ready("chat")) == 1)
        assert not holder.outlook.shelf.blocks
        assert holder.outlook.doubt(time.monotonic()) == "its engine was lost"
