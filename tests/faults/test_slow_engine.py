"""Row 16: an engine that suddenly computes at a tenth of its speed, as beside a noisy neighbour."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deepinfer.control_plane.router.health import Standing
from deepinfer.fleet.spec import RoutingPolicy
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.sim_engine import SimProcess, sim_processes

SHIFTED_SECONDS = 15


@asynccontextmanager
async def asked_without_end(gateway: RunningGateway) -> AsyncIterator[None]:
    async def ask() -> None:
        while True:
            assert (await gateway.ask(max_tokens=20)).status_code == 200

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask()) for _ in range(6)]
        yield
        for each in asking:
            each.cancel()


@asynccontextmanager
async def slowed(sim: SimProcess) -> AsyncIterator[None]:
    """It gets a tenth of the time."""

    async def hold_up() -> None:
        while True:
            sim.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.09)
            sim.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.01)

    holding_up = asyncio.create_task(hold_up())
    try:
        yield
    finally:
        holding_up.cancel()
        await asyncio.wait({holding_up})
        sim.process.send_signal(signal.SIGCONT)


async def test_row_16_its_load_goes_to_the_others_and_comes_back_with_its_speed(tmp_path: Path) -> None:
    async with (
        sim_processes(tmp_path, 3, seconds_per_output_token=0.005) as sims,
        running_gateway(fleet_of(*(sim.endpoint for sim in sims), routing=RoutingPolicy.LEAST_LOADED)) as gateway,
    ):

        def standing() -> Standing:
            return gateway.replicas.candidates("chat")[0].standing

        await until(lambda: len(gateway.replicas.candidates("chat")) == 3)
        async with asked_without_end(gateway):
            await until(lambda: all(c.load.seconds_per_output_token for c in gateway.replicas.candidates("chat")))
            async with slowed(sims[0]):
                await until(lambda: standing() is Standing.EJECTED, SHIFTED_SECONDS)
            await until(lambda: standing() is Standing.TRUSTED, SHIFTED_SECONDS)


async def test_row_16_where_costs_decide_it_is_too_dear_for_nearly_all_and_not_when_it_is_fast_again(
    tmp_path: Path,
) -> None:
    async with (
        sim_processes(tmp_path, 3, seconds_per_output_token=0.005) as sims,
        running_gateway(fleet_of(*(sim.endpoint for sim in sims))) as gateway,
    ):

        async def share() -> float:
            """Of the newest requests, that the first replica got."""
            answers = [await gateway.ask(max_tokens=20, extra={"x-deepinfer-explain": "1"}) for _ in range(12)]
            chosen = [answer.headers["x-deepinfer-replica"] for answer in answers]
            return chosen.count("chat-aaaaa-0") / len(chosen)

        async def until_share(low: float, high: float) -> None:
            async with asyncio.timeout(SHIFTED_SECONDS):
                while not low <= await share() <= high:
                    pass

        await until(lambda: len(gateway.replicas.candidates("chat")) == 3)
        async with asked_without_end(gateway):
            await until(lambda: all(c.load.seconds_per_output_token for c in gateway.replicas.candidates("chat")))
            async with slowed(sims[0]):
                await until_share(0.0, 0.1)
            await until_share(0.25, 1.0)
