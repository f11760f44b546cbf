"""More requests than engines can answer: who waits, who is refused, what they are told. Real shims, real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.control_plane.gateway.admission import QueueLimits
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.sim_engine import SimProcess, sim_processes

TOKEN = 0.01
SEATS = 4


@asynccontextmanager
async def small_fleet(
    folder: Path, replicas: int = 1, limits: QueueLimits | None = None
) -> AsyncIterator[tuple[RunningGateway, list[SimProcess]]]:
    """A gateway over engines that answer `SEATS` requests at once."""
    how = {"seconds_per_output_token": TOKEN, "max_num_seqs": SEATS}
    async with (
        sim_processes(folder, replicas, **how) as sims,
        running_gateway(fleet_of(*(sim.endpoint for sim in sims)), limits) as gateway,
    ):
        await until(lambda: len(gateway.replicas.candidates("chat")) == replicas)
        yield gateway, sims


def ask(gateway: RunningGateway, prompt: str = "hi", **fields: Any) -> asyncio.Task[httpx.Response]:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 20, **fields}
    return asyncio.create_task(gateway.ask(**body))


async def fill(gateway: RunningGateway, tokens: int = 100) -> list[asyncio.Task[httpx.Response]]:
    """Requests until one waits here."""
    running: list[asyncio.Task[httpx.Response]] = []
    while not gateway.waiting("chat"):
        running.append(ask(gateway, f"filler {len(running)}", max_tokens=tokens))
        await asyncio.sleep(0.05)
    return running


async def test_the_gateway_queues_what_the_engine_has_no_room_for_and_nothing_is_lost(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as (gateway, _):
        running = await fill(gateway)
        waiting = [ask(gateway, f"later {at}") for at in range(10)]
        await until(lambda: gateway.waiting("chat") >= 10)
        answers = await asyncio.gather(*running, *waiting)
        assert {answer.status_code for answer in answers} == {200}
        late = answers[-1].headers
        assert int(late["x-deepinfer-queue-position"]) >= 9 and float(late["x-deepinfer-queue-seconds"]) > 0
        assert "x-deepinfer-queue-position" not in answers[0].headers  # it did not wait


async def test_a_lower_number_is_served_first_and_the_engine_never_sees_the_field(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as (gateway, _):
        running = await fill(gateway)
        ended: list[str] = []

        async def named(name: str, priority: int) -> httpx.Response:
            answer = await ask(gateway, name, priority=priority)
            ended.append(name)
            return answer

        late = [asyncio.create_task(named("batch", 5)) for _ in range(8)]
        await until(lambda: gateway.waiting("chat") >= 8)
        urgent = [asyncio.create_task(named("urgent", -1)) for _ in range(4)]
        answers = await asyncio.gather(*running, *late, *urgent)
        assert {answer.status_code for answer in answers} == {200}
        assert ended[:4] == ["urgent"] * 4


async def test_a_full_queue_refuses_at_once_with_the_time_until_it_is_drained(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, limits=QueueLimits(seconds=2.0)) as (gateway, _):
        asked = await fill(gateway)
        while not (refused := [task for task in asked if task.done() and task.result().status_code == 429]):
            asked.append(ask(gateway, f"more {len(asked)}", max_tokens=100))
            await asyncio.sleep(0.05)
        answer = refused[0].result()
        error, seconds = answer.json()["error"], int(answer.headers["retry-after"])
        assert error["code"] == "model_overloaded" and f"try again in {seconds} s" in error["message"]
        assert 1 <= seconds <= 10
        await asyncio.sleep(seconds)
        assert (await ask(gateway, "again")).status_code == 200
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert set(statuses) == {200, 429}


async def test_higher_priority_takes_the_last_place_of_a_full_queue(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, limits=QueueLimits(requests=3)) as (gateway, _):
        running = await fill(gateway, tokens=300)
        low = [ask(gateway, f"low {at}", priority=9) for at in range(2)]
        await until(lambda: gateway.waiting("chat") == 3)
        high = ask(gateway, "high", priority=-9)
        assert sorted([answer.status_code for answer in await asyncio.gather(*low)]) == [200, 429]
        assert {answer.status_code for answer in await asyncio.gather(high, *running)} == {200}


async def test_a_deadline_that_cannot_be_met_is_refused_early(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as (gateway, _):
        await asyncio.gather(*(ask(gateway, f"known {at}", max_tokens=100) for at in range(4)))
        running = await fill(gateway)
        began = time.monotonic()
        answer = await gateway.ask(extra={"x-request-timeout": "0.05"}, max_tokens=100)
        assert answer.status_code == 429 and "deadline" in answer.json()["error"]["message"]
        assert time.monotonic() - began < 0.5
        await asyncio.gather(*running)


async def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as (gateway, _):
        running = await fill(gateway)
        before = gateway.waiting("chat")
        with pytest.raises(httpx.ReadTimeout):
            await gateway.ask(timeout=0.3)
        await until(lambda: gateway.waiting("chat") <= before)
        await asyncio.gather(*running)
        await until(lambda: gateway.replicas.candidates("chat")[0].in_flight == 0)


async def test_those_who_wait_are_told_when_the_last_replica_goes(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as (gateway, (sim,)):
        running = await fill(gateway)
        await sim.kill()
        answers = await asyncio.gather(*running)
        assert {answer.status_code for answer in answers} <= {502, 503}
        assert all(answer.json()["error"]["message"] for answer in answers)
        assert not gateway.waiting("chat")
