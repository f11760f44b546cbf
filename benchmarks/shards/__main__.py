"""Measures layer-shard pipelines on this machine: `make bench-shards`. See the package for who is who.

SmolLM2-135M in bf16, 32 tokens of prompt and 64 new ones a stream. All sides of a table run in one call on the same
cores, in turn, round by round; what counts is the ratio of each round, and the median of these.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.exit_status import exit_status
from benchmarks.shards import parts
from benchmarks.shards.figures import last_line
from benchmarks.shards.parts import Bench, Figures
from benchmarks.shards.peers import peers
from benchmarks.vllm_servers import installed_vllm
from deepinfer.agent.models import Models
from deepinfer.fleet.places import cache_dir
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

MODEL = "smollm2"
ROUNDS = 5
PARTS: dict[str, Callable[[Bench], Figures]] = {
    "hop": parts.hops,
    "stages": parts.stages,
    "delay": parts.delays,
    "losing": parts.losing,
    "peers": peers,
}


async def _folder() -> Path:
    """The model's files; fetched if nobody has yet."""
    models = Models(cache_dir() / "models", os.environ)
    spec = DeploymentSpec(model=MODEL, engine=EngineKind.LAYER_SHARD)
    folder = await models.files(spec, lambda line: print(line, flush=True))
    assert folder is not None
    return folder


def _run(chosen: list[str], count: int) -> None:
    if "peers" in chosen:
        installed_vllm()  # or it says how to install it, before anything is measured
    folder = asyncio.run(_folder())
    own = {name for name in chosen if name != "peers"}
    bench = Bench(folder, count, parts.cuts_of(folder) if own else {})
    figures: Figures = {}
    for name in chosen:
        print(f"\n{name}", flush=True)
        figures |= PARTS[name](bench)
    print(last_line(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.shards", description="layer-shard pipelines on this machine")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; the others' figures are nan")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer than usual are a first look")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"--parts knows {', '.join(PARTS)}, and not {', '.join(sorted(unknown))}.")
    return arguments


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    return exit_status(lambda: _run(arguments.parts, arguments.rounds))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
