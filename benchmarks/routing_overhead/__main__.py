"""`make bench-routing-overhead`: what the kv policy costs a gateway, beside one that only relays.

A real gateway process with two deployments of two simulated engines each, which answer at once: one is routed by what
its engines hold, the other in turn. Both get the same conversations (`conversations.py`), in rounds that alternate. The
cost is the CPU time of the gateway's own process, in user and kernel mode, by the requests; what engines tell of their
contents meanwhile is in it. `parts.py` says where it goes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.exit_status import exit_status
from benchmarks.fleet.until import RunEnded, say
from benchmarks.gateway.cores import divided, starting_on
from benchmarks.routing_overhead.asking import Client, Told, converse
from benchmarks.routing_overhead.conversations import TURNS, Conversations, words_of
from benchmarks.routing_overhead.deployed import REPLICAS, deployed
from benchmarks.routing_overhead.parts import parts
from deepinfer.fleet.places import cache_dir
from tests.fleet import Fleet, eventually

_KV: Final = "kv"
_PLAIN: Final = "round-robin"
_WARMING: Final = 3
"""Rounds before those that count: a gateway that has run for a while knows nearly all the words that people use."""
_LEAST_CACHED: Final = 0.75
"""Of prompts: less, and it was not the kv policy that was measured."""
_MODEL: Final = cache_dir() / "models" / "smollm2-135m-instruct"


@dataclass(frozen=True)
class Round:
    """Of one policy."""

    cpu_seconds: float
    told: Told

    @property
    def microseconds(self) -> float:
        """Of a request."""
        return 1e6 * self.cpu_seconds / self.told.requests


def measure(fleet: Fleet, words: list[str], given: argparse.Namespace) -> dict[str, list[Round]]:
    assert fleet.serve is not None
    gateway = psutil.Process(fleet.serve.pid)
    found: dict[str, list[Round]] = {_PLAIN: [], _KV: []}
    say(f"the gateway is process {gateway.pid}")
    for number in range(1 - _WARMING, given.rounds + 1):
        for policy, rounds in found.items():
            before = _cpu_seconds(gateway)
            told = converse(fleet.port, policy, Conversations(words, number + _WARMING), given.conversations)
            done = Round(_cpu_seconds(gateway) - before, told)
            share = f"{told.cached_share:.1%} of {told.prompt_tokens / told.requests:.0f} tokens cached"
            say(f"round {number} of {given.rounds}, {policy}: {done.microseconds:.0f} us a request, {share}")
            if number > 0:
                rounds.append(done)
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def explained(fleet: Fleet, words: list[str]) -> dict[str, Any]:
    """How a new conversation is routed."""
    first = next(Conversations(words, time.time_ns()).prompts("-"))
    return Client(fleet.port, _KV).ask(first, explain=True)[1]


def is_by_contents(decided: dict[str, Any]) -> bool:
    """Whether both replicas' contents were known."""
    known = [candidate["cached_known_by"] for candidate in decided.get("candidates", ())]
    return decided.get("policy") == _KV and known == ["kv"] * REPLICAS


def tell(found: dict[str, list[Round]]) -> None:
    costs = {policy: [each.microseconds for each in rounds] for policy, rounds in found.items()}
    for policy, each in costs.items():
        told = Told.sum(one.told for one in found[policy])
        print(f"{policy}: {median(each):.0f} us of CPU a request ({', '.join(f'{us:.0f}' for us in each)});", end=" ")
        print(f"{told.cached_share:.1%} of {told.prompt_tokens / told.requests:.0f} tokens cached")
    pairs = list(zip(costs[_KV], costs[_PLAIN], strict=True))
    share = Told.sum(each.told for each in found[_KV]).cached_share
    if share < _LEAST_CACHED:
        raise RunEnded(f"With the kv policy {share:.1%} of the prompts were cached: it did not route by contents.")
    more, times = median([kv - plain for kv, plain in pairs]), median([kv / plain for kv, plain in pairs])
    print(f"bench-routing-overhead cpu_us={more:.1f} cpu_ratio={times:.2f}", flush=True)


def run(given: argparse.Namespace) -> None:
    words = words_of(_MODEL)
    if given.parts:
        print(parts(_MODEL, words, given.conversations))
        return
    with tempfile.TemporaryDirectory(prefix="deepinfer-overhead-") as folder, ExitStack() as stack:
        fleet = Fleet(Path(folder))
        with starting_on(divided().gateway):
            fleet.start_serve()
        stack.callback(fleet.close)
        stack.enter_context(starting_on(divided().others))
        with deployed(fleet, _MODEL, (_KV, _PLAIN)):
            eventually(lambda: is_by_contents(explained(fleet, words)), 60)
            found = measure(fleet, words, given)
            if not is_by_contents(decided := explained(fleet, words)):
                raise RunEnded(f"At its end requests were not routed by contents: {decided}")
    print(parts(_MODEL, words, given.conversations))
    tell(found)


def main() -> int:
    """The process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_overhead", description="What kv routing costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=100, help=f"in a round, of {TURNS} requests each")
    parser.add_argument("--parts", action="store_true", help="only the parts, in this process alone")
    given = parser.parse_args()
    return exit_status(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
