"""Policies beside each other over two real vLLMs with small caches: `python -m benchmarks.routing`.

Users have conversations, and groups of them share a system prompt. Said of each policy: which share of the prompts'
tokens came out of a cache, and how long the first token took. Every run begins with empty caches; all get the same
sessions, flags, environment and cores. Only one pair of engines runs at a time: for each seed first deepinfer's and
then bare ones behind vllm-router, or the other way around. By how much the two sides differ themselves, or the machine
did meanwhile, the policy that both have tells: round robin.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.exit_status import exit_status
from benchmarks.fleet.until import say
from benchmarks.peers_folder import peers_folder
from benchmarks.routing import deepinfer_fleet, vllm_router
from benchmarks.routing.conversing import Conversations, Load
from benchmarks.routing.engines import BLOCK, MODEL, Gateways, model_folder
from benchmarks.routing.figures import OURS, PEERS, Figures, Found, Policy, figures, last_line, mean, table
from benchmarks.routing.oracle import TurnTokens, cached_share
from benchmarks.routing.sessions import SHAPES, WARM_UP, Shape, sessions

_POLICIES = [
    *(Policy(OURS, name) for name in deepinfer_fleet.POLICIES),
    *(Policy(PEERS, name) for name in vllm_router.POLICIES),
]
_SEEDS = 3

Start = Callable[[Path], AbstractContextManager[Gateways]]


class Bench:
    """What every run needs, and what the runs so far showed."""

    def __init__(self, shapes: Sequence[Shape], policies: Sequence[Policy], sides: dict[str, Start]) -> None:
        self._shapes = shapes
        self._policies = policies
        self._sides = sides
        self._runs = defaultdict[tuple[str, Policy], list[Figures]](list)

    def found(self) -> Found:
        every = ((shape.name, policy) for shape in self._shapes for policy in self._policies)
        return {key: mean(runs) for key in every if (runs := self._runs.get(key))}

    def run(self, seed: int) -> None:
        """The sides take turns in being first, and chance orders the policies: what else the machine does meets all."""
        for side in (OURS, PEERS)[:: 1 if seed % 2 else -1]:
            policies = [policy for policy in self._policies if policy.side == side]
            if not policies:
                continue
            say(f"seed {seed}: starting two engines for {side}")
            with (
                tempfile.TemporaryDirectory(prefix="deepinfer-routing-") as home,
                self._sides[side](Path(home)) as gateways,
            ):
                self._conversed(gateways, policies[0], WARM_UP, seed)
                for shape in self._shapes:
                    for policy in random.Random(seed).sample(policies, len(policies)):
                        self._measure(gateways, policy, shape, seed)

    def _measure(self, gateways: Gateways, policy: Policy, shape: Shape, seed: int) -> None:
        told, tokens = self._conversed(gateways, policy, shape, seed), TurnTokens(model_folder())
        oracle = cached_share(map(tokens.of, told.turns), BLOCK)
        found = figures(told.turns, oracle, told.seconds)
        self._runs[shape.name, policy].append(found)
        say(
            f"seed {seed}, {shape.name}, {policy}: cached {found.cached_share:.1%} of {found.oracle_share:.1%}, "
            f"TTFT {found.ttft_mean * 1e3:.0f} / {found.ttft_p90 * 1e3:.0f} ms, {found.seconds:.0f} s"
        )

    def _conversed(self, gateways: Gateways, policy: Policy, shape: Shape, seed: int) -> Conversations:
        with gateways.gateway(policy.name) as gateway:
            load = Load(gateway, MODEL, f"{policy}-{shape.name}-{seed}")
            return asyncio.run(load.converse(sessions(shape, seed)))


def run(given: argparse.Namespace) -> None:
    sides: dict[str, Start] = {
        OURS: deepinfer_fleet.deepinfer_fleet,
        PEERS: lambda home: vllm_router.vllm_router(given.cache.absolute(), home),
    }
    bench = Bench([SHAPES[name] for name in given.shapes], given.policies, sides)
    for seed in range(1, given.seeds + 1):
        bench.run(seed)
    print(table(bench.found()))
    print(last_line(bench.found()), flush=True)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description="Measure routing policies over two real engines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    every = {str(policy): policy for policy in _POLICIES}
    parser.add_argument("--policies", default=",".join(every), help="which, with commas between them")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of the load, with commas between them")
    parser.add_argument("--seeds", type=int, default=_SEEDS, help="how many; each has its own texts and order")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--cache", type=Path, default=peers_folder(), help="where vllm-router is installed, once")
    given = parser.parse_args()
    names, given.shapes = given.policies.split(","), given.shapes.split(",")
    for kind, asked, known in (("policy", names, every), ("shape", given.shapes, SHAPES)):
        if unknown := [name for name in asked if name not in known]:
            parser.error(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(known)}")
    given.policies = [every[name] for name in names]
    given.seeds = 1 if given.quick else given.seeds
    return given


def main() -> int:
    """The process's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines are stopped
    for name in ("deepinfer", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given = _given()
    return exit_status(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
