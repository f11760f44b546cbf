"""Replicas that fail or slow down are left out, and come back by a real answer. Engines made by hand, real sockets."""

from __future__ import annotations

import asyncio

from deepinfer.control_plane.router.health import FAILURES, Standing
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.fleet.spec import RoutingPolicy
from tests.contracts.test_gateway_breakage import GOOD, fails_at_once, gateway_over
from tests.gateway_parts import RunningGateway, fleet_of, until
from tests.hand_made_engine import answers

BROKEN = answers(b'{"error": {"message": "CUDA error"}}', status=500)


def standing(gateway: RunningGateway, replica: int) -> Standing:
    return gateway.replicas.candidates("chat")[replica].standing


async def test_a_replica_that_fails_is_left_out_and_no_request_with_it() -> None:
    async with gateway_over(BROKEN, GOOD) as (gateway, (bad, good)):
        answered = [await gateway.ask() for _ in range(20)]
        assert {answer.status_code for answer in answered} == {200}
        assert len(bad.calls) == FAILURES and len(good.calls) == 20
        assert standing(gateway, 0) is Standing.EJECTED


async def test_it_comes_back_by_a_real_answer_and_a_failed_probe_costs_no_request() -> None:
    async with gateway_over(fails_at_once, GOOD) as (gateway, (bad, _)):
        while standing(gateway, 0) is not Standing.EJECTED:
            assert (await gateway.ask()).status_code == 200
        asked = len(bad.calls)
        await until(lambda: standing(gateway, 0) is Standing.PROBE)
        assert (await gateway.ask()).status_code == 200  # the probe fails, and another replica answers
        assert len(bad.calls) == asked + 1 and standing(gateway, 0) is Standing.EJECTED
        bad.answering = GOOD
        await until(lambda: standing(gateway, 0) is Standing.PROBE)
        assert (await gateway.ask()).status_code == 200
        assert len(bad.calls) == asked + 2 and standing(gateway, 0) is Standing.TRUSTED


async def test_a_request_that_all_engines_fail_ejects_none() -> None:
    async with gateway_over(BROKEN, BROKEN, BROKEN) as (gateway, _):
        for _ in range(5 * FAILURES):
            assert (await gateway.ask()).status_code == 500
        assert {c.standing for c in gateway.replicas.candidates("chat")} == {Standing.TRUSTED}


async def test_the_only_replica_is_never_left_out() -> None:
    async with gateway_over(fails_at_once) as (gateway, (only,)):
        assert {(await gateway.ask()).status_code for _ in range(2 * FAILURES)} == {502}
        only.answering = GOOD
        assert (await gateway.ask()).status_code == 200


async def test_retries_never_double_the_load_when_everything_fails() -> None:
    async with gateway_over(fails_at_once, fails_at_once) as (gateway, engines):
        await asyncio.gather(*(gateway.ask() for _ in range(200)))
        retries = sum(len(engine.calls) for engine in engines) - 200
        assert 0 < retries <= 10 + 0.2 * 200 + 10  # what was saved, a fifth, and one a second


async def test_a_replica_that_slows_down_where_its_peers_do_not_is_left_out() -> None:
    async with gateway_over(GOOD, GOOD, GOOD) as (gateway, engines):
        endpoints = (engine.endpoint for engine in engines)
        gateway.replicas.update(fleet_of(*endpoints, routing=RoutingPolicy.LEAST_LOADED))

        def paces() -> list[float]:
            return [c.load.seconds_per_output_token for c in gateway.replicas.candidates("chat")]

        for engine, seconds in zip(engines, (0.01, 0.01, 0.05), strict=True):  # cards of two kinds
            await engine.tells(EngineLoad(running=1, seconds_per_output_token=seconds))
        await until(lambda: paces() == [0.01, 0.01, 0.05])
        await engines[0].tells(EngineLoad(running=1, seconds_per_output_token=0.1))
        await until(lambda: standing(gateway, 0) is Standing.EJECTED)
        assert standing(gateway, 2) is Standing.TRUSTED
        for _ in range(10):
            assert (await gateway.ask()).status_code == 200
        assert not engines[0].calls
