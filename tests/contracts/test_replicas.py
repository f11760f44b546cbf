"""The router's view over real gRPC: an engine is routed to only while it says, itself, that it is the one and ready."""

from __future__ import annotations

import asyncio
import logging

import pytest

from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.router.router import Router
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet import keys
from deepinfer.fleet.snapshot import Snapshot
from tests.fleet_values import deployment, placement
from tests.gateway_parts import fleet_of, until
from tests.hand_made_engine import HandMadeEngine, hand_made_engine


def lent(replicas: Replicas) -> Loan:
    request, now = RoutedRequest("chat"), asyncio.get_running_loop().time()
    return replicas.lend(Router().choose(replicas.ready("chat"), request, replicas.turn, now))


async def test_a_ready_engine_is_a_candidate_under_both_names() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        assert not replicas.has_view and not replicas.knows("chat")
        replicas.update(fleet_of(engine.endpoint))
        assert replicas.has_view and replicas.knows("org/model")
        await until(lambda: replicas.candidates("chat"))
        assert replicas.candidates("chat") == replicas.candidates("org/model")
        assert [c.endpoint for c in replicas.candidates("chat")] == [engine.endpoint]
        assert [(m.name, m.ready) for m in replicas.models()] == [("chat", True), ("org/model", True)]
        assert replicas.candidates("other") == ()


async def test_an_engine_that_tells_the_names_it_was_given_has_none_of_them_looked_at_anew() -> None:
    """A gateway that starts hears that of thousands of engines at once, and all names of all engines are looked at."""
    async with hand_made_engine() as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        names = replicas._by_name  # there is no other way to see it
        await until(lambda: replicas.candidates("chat"))
        assert replicas._by_name is names


async def test_phase_is_what_the_engine_says_now() -> None:
    async with hand_made_engine(phase=ShimPhase.STARTING) as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        await engine.becomes(ShimPhase.READY)
        await until(lambda: replicas.candidates("chat"))
        await engine.becomes(ShimPhase.DRAINING)
        await until(lambda: not replicas.candidates("chat"))
        assert replicas.counts() == {("chat", "unreachable"): 1}


@pytest.mark.parametrize("who", [{"epoch": 1}, {"epoch": 3}, {"placement": "other-bbbbb-0", "epoch": 2}])
async def test_another_engine_at_the_endpoint_is_not_routed_to(
    who: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with hand_made_engine(**who) as engine, Replicas() as replicas:
        with caplog.at_level(logging.WARNING):
            replicas.update(fleet_of(engine.endpoint, epoch=2))
            await until(lambda: engine.identified >= 3)
            assert "answers" in replicas.waits_for("chat") and not replicas.candidates("chat")
        assert sum("is not routed to" in record.message for record in caplog.records) == 1


async def test_an_older_epoch_is_dropped_when_a_newer_one_is_seen_and_its_requests_may_end() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        await until(lambda: replicas.candidates("chat"))
        with lent(replicas) as client:
            replicas.update(fleet_of(None, epoch=2))
            assert not replicas.candidates("chat")
            assert (await client.info()).epoch == 1  # still open for what runs


async def test_a_vanished_status_keeps_the_route_and_so_does_a_record_that_does_not_parse() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        await until(lambda: replicas.candidates("chat"))
        for fleet in (
            Snapshot(deployments=(deployment(),), placements=(placement(),)),
            Snapshot(unreadable={keys.placement("node-1", "chat-aaaaa-0"): "?", keys.deployment("chat"): "?"}),
        ):
            replicas.update(fleet)
            assert replicas.candidates("chat") and replicas.knows("chat")


async def test_the_same_snapshot_again_changes_nothing() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        fleet = fleet_of(engine.endpoint)
        replicas.update(fleet)
        await until(lambda: replicas.candidates("chat"))
        replicas.update(fleet)
        assert replicas.candidates("chat")


async def test_an_engine_that_comes_back_is_a_candidate_again() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        await until(lambda: replicas.candidates("chat"))
        await engine.stop()
        await until(lambda: not replicas.candidates("chat"))
        returned = HandMadeEngine()
        await returned.start(int(engine.endpoint.rpartition(":")[2]))
        await until(lambda: replicas.candidates("chat"))
        await returned.stop()


async def test_requests_in_flight_and_turns_are_counted() -> None:
    async with hand_made_engine() as engine, Replicas() as replicas:
        replicas.update(fleet_of(engine.endpoint))
        await until(lambda: replicas.candidates("chat"))
        (before,) = replicas.candidates("chat")
        with lent(replicas):
            (during,) = replicas.candidates("chat")
        (after,) = replicas.candidates("chat")
        assert [(c.in_flight, c.last_used) for c in (before, during, after)] == [(0, 0), (1, 1), (0, 1)]


async def test_a_model_is_listed_from_its_deployment_on() -> None:
    async with Replicas() as replicas:
        replicas.update(Snapshot(deployments=(deployment(second=2), deployment("old", "old", second=1))))
        assert [(m.name, m.ready) for m in replicas.models()] == [("old", False), ("chat", False), ("org/model", False)]
        assert replicas.models()[0].created == 1767225601
