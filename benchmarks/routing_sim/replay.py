"""A trace, asked of a fleet through a policy; in virtual time, on real simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Final

from benchmarks.routing_sim.policy import Asked, Policy, Start
from benchmarks.routing_sim.replica import Replica
from benchmarks.routing_sim.trace import Session, Tokens, Trace
from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest

_INSTANTS: Final = 50


@dataclass(frozen=True, slots=True)
class Served:
    """One request, as who asked saw it."""

    ttft: float
    seconds_per_token: float  # after the first
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Played:
    """`rate`: output tokens a second of all replicas. While sessions arrive: at instants of the second half of that
    time, what was made until then by the time until then, and of these the mean."""

    served: tuple[Served, ...]
    rate: float
    prefill_busy: float  # the share of that time that computing prompts took, over all replicas


async def replay(trace: Trace, fleet: Sequence[SimArgs], start: Start, seed: int) -> Played:
    replicas = [Replica(place, args) for place, args in enumerate(fleet)]
    play = _Play(replicas, start(replicas, Random(seed)))
    seconds = trace.sessions[-1].arrival
    watching = [asyncio.ensure_future(replica.watch()) for replica in replicas]
    async with asyncio.TaskGroup() as tasks:
        for number, session in enumerate(trace.sessions):
            tasks.create_task(play.session(f"session {number}", session))
        rate = await _rate(replicas, seconds)
        busy = sum(replica.prefill_seconds() for replica in replicas) / seconds / len(replicas)
    for watch in watching:
        watch.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    return Played(tuple(play.served), rate, busy)


async def _rate(replicas: Sequence[Replica], seconds: float) -> float:
    """At one instant alone it would be a matter of which answers happen to be under way."""
    began, rates = asyncio.get_running_loop().time(), []
    for instant in range(_INSTANTS):
        until = seconds * (0.5 + 0.5 * instant / (_INSTANTS - 1))
        await asyncio.sleep(began + until - asyncio.get_running_loop().time())
        rates.append(sum(replica.engine.totals.tokens for replica in replicas) / until)
    return fmean(rates)


class _Play:
    def __init__(self, replicas: Sequence[Replica], policy: Policy) -> None:
        self.served: list[Served] = []
        self._replicas, self._policy = replicas, policy
        self._now = asyncio.get_running_loop().time

    async def session(self, name: str, session: Session) -> None:
        await asyncio.sleep(session.arrival)
        said: Tokens = ()
        for number, turn in enumerate(session.turns):
            if number:
                await asyncio.sleep(turn.pause)
            said += turn.new
            names = chain(token_bytes(said[:-1]), self._replicas[0].args.block_size)  # the last gives the first logits
            said += await self._answer(Asked(said, tuple(names), turn.max_tokens, name))

    async def _answer(self, asked: Asked) -> Tokens:
        asked_at = began_at = self._now()
        replica = self._replicas[self._policy.choose(asked)]
        answer: list[int] = []
        request = TokenRequest(asked.session, asked.token_ids, SamplingParams(asked.max_tokens, ignore_eos=True))
        async with aclosing(replica.answer(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if not answer:
                    began_at, cached = self._now(), delta.cached_tokens
                    self._policy.began(asked, cached)
                answer += delta.token_ids
        self._policy.ended(asked)
        pace = (self._now() - began_at) / max(1, len(answer) - 1)
        self.served.append(Served(began_at - asked_at, pace, asked.tokens, cached))
        return tuple(answer)
