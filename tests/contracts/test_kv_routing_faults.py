"""What is told of a replica is wrong, or it has changed unseen: routing never believes it for long, and says why."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepinfer.control_plane.router.connection import Connection
from deepinfer.engine_shim.state_wire import EngineState
from tests.contracts.test_kv_routing import SPEED, ask, is_known, kv_gateway
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.lying_engine import LyingEngine, as_it_is, lying_engines
from tests.sim_engine import sim_process

FAST: dict[str, Any] = {**SPEED, "prefill_tokens_per_second": 8000, "seconds_per_output_token": 0.03}


@asynccontextmanager
async def gateway_to_liars(**engine_args: Any) -> AsyncIterator[tuple[RunningGateway, list[LyingEngine]]]:
    async with (
        lying_engines(2, **{**FAST, **engine_args}) as engines,
        running_gateway(fleet_of(*(engine.endpoint for engine in engines))) as gateway,
    ):
        await until(lambda: len(gateway.replicas.ready("chat")) == 2)
        await until(lambda: all(map(is_known, gateway.replicas.ready("chat"))))
        yield gateway, engines


def connection_to(gateway: RunningGateway, placement: str) -> Connection:
    return next(c for c in gateway.replicas.ready("chat") if c.placement == placement)


def holder_of(engines: list[LyingEngine], told: dict[str, Any]) -> LyingEngine:
    return next(engine for engine in engines if engine.placement == told["chosen"])


def candidate(told: dict[str, Any], placement: str) -> dict[str, Any]:
    return next(c for c in told["candidates"] if c["replica"] == placement)


def same(gateway: RunningGateway, engine: LyingEngine) -> bool:
    """Whether what is known of it is what it holds."""
    connection = connection_to(gateway, engine.placement)
    shelf = connection.outlook.shelf
    return (
        is_known(connection) and shelf.blocks == len(engine.engine.kv) and all(key in shelf for key in engine.engine.kv)
    )


async def reasons(gateway: RunningGateway) -> dict[str, str]:
    """Why the index of each replica is not used, as the metrics tell it."""
    page = (await gateway.http.get("/metrics")).text
    lines = (line for line in page.splitlines() if line.startswith("deepinfer_router_index_used{"))
    told = {}
    for line in lines:
        _, replica, _, reason, used = line.split('"')
        assert used.split()[-1] == ("0.0" if reason else "1.0")
        told[replica] = reason
    return told


class Mangled:
    """Does `wrong` to the first message that tells of new blocks, and to no other."""

    def __init__(self, wrong: Callable[[EngineState], Iterable[EngineState]]) -> None:
        self.done = False
        self._wrong = wrong

    def __call__(self, state: EngineState) -> Iterable[EngineState]:
        if self.done or not state.stored or state.snapshot:
            return (state,)
        self.done = True
        return self._wrong(state)


class Reordered(Mangled):
    """It comes after the next one."""

    def __init__(self) -> None:
        super().__init__(lambda state: ())
        self._kept: tuple[EngineState, ...] = ()

    def __call__(self, state: EngineState) -> Iterable[EngineState]:
        kept, told = self._kept, tuple(super().__call__(state))
        self._kept = () if told else (state,)
        return (*told, *kept)


MANGLED: dict[str, Callable[[], Mangled]] = {
    "dropped": lambda: Mangled(lambda state: ()),
    "doubled": lambda: Mangled(lambda state: (state, state)),
    "reordered": Reordered,
    "wrong digest": lambda: Mangled(lambda state: (replace(state, digest=state.digest ^ 1),)),
    "names lost": lambda: Mangled(lambda state: (replace(state, stored={0: [*state.stored[0]][1:]}),)),
    "wrong after": lambda: Mangled(lambda state: (replace(state, after=state.after + 1),)),
    "older epoch": lambda: Mangled(lambda state: (replace(state, boot_epoch=state.boot_epoch - 1),)),
    "older snapshot": lambda: Mangled(
        lambda state: (state, replace(state, snapshot=True, stored={}, digest=0, boot_epoch=state.boot_epoch - 1))
    ),
}


async def test_a_message_that_is_lost_doubled_late_or_wrong_is_noticed_and_healed() -> None:
    async with gateway_to_liars() as (gateway, engines):
        turns = ["Where is the lighthouse? " * 10]
        liar = holder_of(engines, await ask(gateway, *turns))
        for what, mangled in MANGLED.items():
            await until(lambda: same(gateway, liar), 2.0)
            wrong, watches = mangled(), liar.watches
            liar.telling = wrong
            turns += ["Where its words are told.", f"And if they are {what}? " * 4]
            told = await ask(gateway, *turns, max_tokens=12)  # so long that another message follows
            assert told["chosen"] == liar.placement, what
            assert told["foreseen"]["cached_tokens"] == told["cached"] > 600, what
            await until(lambda: wrong.done and liar.watches > watches, 2.0)  # noqa: B023
            await until(lambda: same(gateway, liar), 2.0)
        told = await ask(gateway, *turns)
        assert told["foreseen"]["cached_tokens"] == told["cached"] > 1200


async def test_what_is_lost_is_not_foreseen_from_that_moment_on() -> None:
    async with gateway_to_liars() as (gateway, engines):
        words = "Where is the lighthouse? " * 20
        liar = holder_of(engines, await ask(gateway, words))
        await until(lambda: same(gateway, liar), 2.0)
        liar.telling = lambda state: () if state.snapshot else (replace(state, digest=state.digest ^ 1),)
        await ask(gateway, words, "On a rock.", "And who keeps it? " * 4)
        await until(lambda: not is_known(connection_to(gateway, liar.placement)), 2.0)
        told = candidate(await ask(gateway, words), liar.placement)
        assert told["index_not_used"] == "its KV contents are not known yet"
        assert told["cached_known_by"] == "text"


async def test_contents_that_never_fit_together_are_guessed_and_the_replica_stays() -> None:
    async with gateway_to_liars() as (gateway, engines):
        words = "Where is the lighthouse? " * 20
        liar = holder_of(engines, await ask(gateway, words))
        (honest,) = (engine for engine in engines if engine is not liar)
        liar.telling = lambda state: (replace(state, digest=state.digest ^ 1),)
        told = await ask(gateway, words)
        connection = connection_to(gateway, liar.placement)
        unfit = "what it tells of its KV contents does not fit together"
        await until(lambda: connection.outlook.doubt(time.monotonic()) == unfit, 2.0)
        assert not connection.outlook.shelf.blocks
        assert await reasons(gateway) == {liar.placement: unfit, honest.placement: ""}
        for number in range(3):
            told = await ask(gateway, words, "On a rock.", f"And {number}?")
            assert told["chosen"] == liar.placement
            guessed = candidate(told, liar.placement)
            assert (guessed["cached_known_by"], guessed["index_not_used"]) == ("text", unfit)
        assert liar.watches < 10  # it is not asked again and again
        liar.telling = as_it_is
        await until(lambda: is_known(connection), 5.0)
        told = await ask(gateway, words)
        assert told["foreseen"]["cached_tokens"] == told["cached"] > 900


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cached_tokens", "less were cached than was foreseen"),
        ("prompt_tokens", "its prompts have more or fewer tokens than were foreseen"),
    ],
)
async def test_an_engine_whose_answers_say_otherwise_is_not_believed_until_they_do(name: str, reason: str) -> None:
    async with gateway_to_liars() as (gateway, engines):
        words = "Where is the lighthouse? " * 20
        liar = holder_of(engines, await ask(gateway, words))
        connection = connection_to(gateway, liar.placement)
        await until(lambda: same(gateway, liar), 2.0)
        assert (await ask(gateway, words))["foreseen"]["cached_tokens"] > 900
        liar.usage = {name: 0 if name == "cached_tokens" else 1200}
        asked = 0
        while not connection.outlook.doubt(time.monotonic()):
            assert (await ask(gateway, words))["chosen"] == liar.placement
            asked += 1
        assert asked <= 8
        told = await ask(gateway, words)
        assert reason in candidate(told, liar.placement)["index_not_used"]
        assert reason in (await reasons(gateway))[liar.placement]
        page = (await gateway.http.get("/metrics")).text
        assert f'deepinfer_router_index_errors_total{{replica="{liar.placement}"}} 1' in page
        liar.usage = {}
        await until(lambda: same(gateway, liar), 2.0)
        told = await ask(gateway, words)
        assert told["foreseen"]["cached_tokens"] == told["cached"] > 900


async def test_an_emptied_prefix_cache_is_known() -> None:
    async with gateway_to_liars() as (gateway, engines):
        words = "Where is the lighthouse? " * 20
        told = await ask(gateway, words)
        holder = holder_of(engines, told)
        await until(lambda: same(gateway, holder), 2.0)
        holder.resets_prefix_cache()
        await until(lambda: same(gateway, holder), 2.0)
        told = await ask(gateway, words)
        assert told["foreseen"]["cached_tokens"] == told["cached"] == 0
        await until(lambda: all(same(gateway, engine) for engine in engines), 2.0)
        told = await ask(gateway, words)
        assert told["foreseen"]["cached_tokens"] == told["cached"] > 900


async def test_an_engine_that_began_anew_with_an_empty_cache_is_known_to_be_empty(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, sims):
        words = "Where is the lighthouse? " * 20
        first = await ask(gateway, words)
        at = int(first["chosen"][-1])
        await until(lambda: connection_to(gateway, first["chosen"]).outlook.shelf.blocks, 2.0)
        await sims[at].kill()
        async with sim_process(tmp_path, at, **FAST) as again:
            assert again.endpoint == sims[at].endpoint
            gateway.replicas.update(fleet_of(*(sim.endpoint for sim in sims)))  # as its agent would tell it
            await until(lambda: len(gateway.replicas.ready("chat")) == 2, 2.0)
            await until(lambda: is_known(connection_to(gateway, first["chosen"])), 2.0)
            told = await ask(gateway, words)
            assert told["foreseen"]["cached_tokens"] == told["cached"] == 0
            assert candidate(told, first["chosen"])["index_not_used"] == ""


async def test_a_replica_that_becomes_five_times_slower_is_left_for_a_colder_one() -> None:
    """Nearly all of every prompt lies there, so that only its speed can be what moves them."""
    async with gateway_to_liars(prefill_tokens_per_second=2000) as (gateway, engines):
        base = "Where is the lighthouse? " * 20
        slow = holder_of(engines, await ask(gateway, base))
        for number in range(3):
            assert (await ask(gateway, base, "It is.", f"{number}? " * 400))["chosen"] == slow.placement
        slow.becomes_slower(5)
        began = time.monotonic()
        asked: list[asyncio.Task[dict[str, Any]]] = []
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() - began < 2.0:
                asked.append(tasks.create_task(ask(gateway, base, "It is.", f"{len(asked)}? " * 400)))
                await asyncio.sleep(0.25)
        told = next(decided for decided in map(asyncio.Task.result, asked) if decided["chosen"] != slow.placement)
        if not connection_to(gateway, slow.placement).is_ejected:
            why = candidate(told, slow.placement)
            assert why["slowness"] > 1 or why["terms"]["overdue"] + why["terms"]["wait"] > 0.1


async def test_a_stopped_engine_is_left_alone_when_only_whole_answers_are_asked_of_it(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path) as (gateway, sims):
        words = "Where is the lighthouse? " * 20
        first = await ask(gateway, words, stream=False, max_tokens=64)
        holder = connection_to(gateway, first["chosen"])
        await until(lambda: holder.outlook.shelf.blocks and not holder.load.running, 2.0)
        stopped = sims[int(first["chosen"][-1])].process.pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            stuck = asyncio.create_task(ask(gateway, words, stream=False))
            await asyncio.sleep(2)
            told = await ask(gateway, words, stream=False)
            assert told["chosen"] != first["chosen"]
            late = candidate(told, first["chosen"])
            assert late["terms"]["overdue"] > 0.5 and late["cached_tokens"] > 900
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert (await stuck)["chosen"] == first["chosen"]


async def test_a_stopped_core_is_told_by_its_shim_and_left_alone(tmp_path: Path) -> None:
    async with kv_gateway(tmp_path, core_process=True) as (gateway, sims):
        words = "Where is the lighthouse? " * 20
        first = await ask(gateway, words, stream=False)
        holder = connection_to(gateway, first["chosen"])
        await until(lambda: holder.outlook.shelf.blocks, 2.0)
        (core,) = psutil.Process(sims[int(first["chosen"][-1])].process.pid).children()
        core.suspend()
        try:
            stuck = asyncio.create_task(ask(gateway, words, stream=False))
            await until(lambda: holder.load.stalled_seconds, 2.0)
            told = await ask(gateway, words, stream=False)
            assert told["chosen"] != first["chosen"]
            assert candidate(told, first["chosen"])["terms"]["overdue"] > 0.5
        finally:
            core.resume()
        assert (await stuck)["chosen"] == first["chosen"]
        await until(lambda: not holder.load.stalled_seconds, 2.0)
