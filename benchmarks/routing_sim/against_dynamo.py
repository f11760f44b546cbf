"""`make bench-dynamo`: deepinfer over its simulated engines, and NVIDIA Dynamo's KV router over its own, in real time.

Engines of the same timing, cache and batch (`same_engines.py`), the same requests at the same moments, one fleet after
the other, each with the whole machine. `alone` is the TTFT of 512 new tokens while nothing else runs: what frontend and
engine add to the 256 ms that they take. The last line has the medians over all traces and seeds of ours over Dynamo's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, median

import httpx

from benchmarks.exit_status import exit_status
from benchmarks.fleet.until import say
from benchmarks.gateway.cores import Cores
from benchmarks.gateway.dynamo import CONTEXT, DynamoSite, dynamo_fleet, model_folder
from benchmarks.peers_folder import peers_folder
from benchmarks.routing_sim.http_replay import MODEL, Heard, asked, replay_over_http
from benchmarks.routing_sim.same_engines import PREFILL_RATE, mocker_arguments, sim_engine_args
from benchmarks.routing_sim.trace import Demand, Trace, text
from benchmarks.routing_sim.traces import KINDS
from tests.fleet import Fleet

_UTILISATION = 0.35
"""Half of what it is in virtual time: a trace is short here, so that caches are cold for much of it."""
_TRACES = ("zipf", "agents", "none")
_ALONE_TOKENS, _ALONE_TIMES = 512, 5
_FLEETS = ("deepinfer", "dynamo")


@dataclass(frozen=True)
class Result:
    ttft_mean: float
    ttft_p99: float
    output_rate: float  # tokens a second, until all was answered
    cached_share: float


@contextmanager
def _deepinfer(home: Path, given: argparse.Namespace) -> Iterator[str]:
    model = model_folder(home / "models" / MODEL)
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # without weights, but a model
    fleet = Fleet(home, serve="queue_seconds = 300\n")  # Dynamo refuses nobody
    with fleet.running():
        of_model = {"name": MODEL, "model": MODEL, "model_path": str(model), "engine": "sim", "device": "cpu"}
        fleet.deploy(**of_model, replicas=given.replicas, max_model_len=CONTEXT, engine_args=sim_engine_args())
        fleet.wait_ready(MODEL)
        yield fleet.url


@contextmanager
def _dynamo(home: Path, given: argparse.Namespace) -> Iterator[str]:
    everywhere = frozenset(os.sched_getaffinity(0))
    site = DynamoSite(home, given.cache, Cores(everywhere, everywhere))
    with dynamo_fleet(site, MODEL, mocker_arguments(home, given.replicas)) as gateway:
        yield f"http://127.0.0.1:{gateway.port}"


_START: dict[str, Callable[[Path, argparse.Namespace], AbstractContextManager[str]]] = {
    "deepinfer": _deepinfer,
    "dynamo": _dynamo,
}


def measured(fleet: str, trace: Trace, given: argparse.Namespace) -> Result:
    """By a fleet of its own, with empty caches."""
    with tempfile.TemporaryDirectory(prefix="deepinfer-dynamo-") as folder, _START[fleet](Path(folder), given) as url:
        alone = asyncio.run(_alone(url))
        heard = asyncio.run(replay_over_http(url, trace))
    result = _result(heard)
    print(
        f"{trace.name:8}{fleet:12}TTFT {result.ttft_mean * 1e3:6.0f} ms  p99 {result.ttft_p99 * 1e3:6.0f} ms  "
        f"{result.output_rate:6.0f} tok/s  cached {result.cached_share:6.1%}  alone {alone * 1e3:4.0f} ms",
        flush=True,
    )
    return result


async def _alone(url: str) -> float:
    """Their prompts fill a part of one engine's cache: about as much in either fleet."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        prompts = [text(Random(number), _ALONE_TOKENS) for number in range(_ALONE_TIMES)]
        return median([(await asked(http, prompt, 2, time.monotonic())).ttft for prompt in prompts])


def _result(heard: list[Heard]) -> Result:
    ttfts = sorted(each.ttft for each in heard)
    return Result(
        ttft_mean=fmean(ttfts),
        ttft_p99=ttfts[int(0.99 * len(ttfts))],
        output_rate=sum(each.tokens for each in heard) / max(each.ended for each in heard),
        cached_share=sum(each.cached_tokens for each in heard) / sum(each.prompt_tokens for each in heard),
    )


def run(given: argparse.Namespace) -> str:
    ratios: list[tuple[float, float, float]] = []
    for seed in range(given.seeds):
        for kind in (kind for kind in KINDS if kind.name in given.traces):
            rate = _UTILISATION * PREFILL_RATE * given.replicas / kind.work
            trace = kind.trace(Demand(given.requests, rate, given.replicas), seed)
            say(f"{kind.name}, seed {seed}: {given.requests} requests, {rate:.1f} a second")
            ours, theirs = (measured(fleet, trace, given) for fleet in _FLEETS)
            ratios.append(
                (
                    ours.ttft_mean / theirs.ttft_mean,
                    ours.ttft_p99 / theirs.ttft_p99,
                    ours.output_rate / theirs.output_rate,
                )
            )
    mean, p99, rate = (median(values) for values in zip(*ratios, strict=True))
    return f"bench-dynamo ttft_mean={mean:.3f} ttft_p99={p99:.3f} output_rate={rate:.3f}"


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing_sim.against_dynamo",
        description="Measure deepinfer beside NVIDIA Dynamo, each over simulated engines of the same timing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--traces", default=",".join(_TRACES), help="which, with commas between them")
    parser.add_argument("--cache", type=Path, default=peers_folder(), help="where Dynamo is installed, once")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200, help="of each trace")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    given.cache, given.traces = given.cache.absolute(), given.traces.split(",")
    names = [kind.name for kind in KINDS]
    if unknown := [name for name in given.traces if name not in names]:
        parser.error(f"no such trace: {', '.join(unknown)}; there are {', '.join(names)}")
    return given


def main() -> int:
    """The process's exit status."""
    given = _given()
    return exit_status(lambda: print(run(given), flush=True))


if __name__ == "__main__":
    sys.exit(main())
