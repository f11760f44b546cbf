"""Many slow streams through one gateway process: `python -m benchmarks.gateway.streams`.

Each gets a chunk about every second. Memory is what the gateway's process grows by, after a few streams one after the
other; the longest gap is the worst between two chunks of any stream; a hang-up counts until its engine knows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.exit_status import exit_status
from benchmarks.fleet.until import RunEnded, say
from benchmarks.gateway.chat import chat
from benchmarks.gateway.cores import divided
from benchmarks.gateway.deepinfer_serve import deepinfer
from benchmarks.gateway.engines import CHUNKS, MODEL, Engines, two_engines
from benchmarks.gateway.load import Load, Seen
from benchmarks.gateway.programs import compiled
from benchmarks.gateway.running import Gateway, Site

_ENDLESS = 1_000_000
_WARM_SECONDS = 0.2
_LOOK_SECONDS = 0.2
_OTHER_FILES = 200
"""Of a gateway: its store, its engines' shims, its log."""


@dataclass(frozen=True)
class Held:
    """What became of the streams."""

    seen: Seen
    kilobytes: float  # of each
    cpu_share: float  # of one core
    hang_up_seconds: float  # until engines knew of the last one


def hold(gateway: Gateway, engines: Engines, load: Load, given: argparse.Namespace) -> Held:
    assert gateway.processes is not None
    load.asks(gateway.port, chat(MODEL, gateway.token, stream=True, tokens=CHUNKS), 1, _WARM_SECONDS)
    engines.answer(chunks=_ENDLESS, pace_ms=given.pace_ms)
    process, request = gateway.processes.first, chat(MODEL, gateway.token, stream=True, tokens=_ENDLESS)
    before, cpu = process.memory_info().rss, gateway.processes.cpu_seconds()
    say(f"{given.streams} streams for {given.seconds:g} s")
    with load.holding(gateway.port, request, given.streams, given.seconds) as holding:
        most = before
        while holding.is_running():
            most = max(most, process.memory_info().rss)
            time.sleep(_LOOK_SECONDS)
        seen = holding.seen()
    cpu = (gateway.processes.cpu_seconds() - cpu) / seen.seconds
    hang_up = engines.last_hang_up() - seen.hung_up_at
    return Held(seen, (most - before) / given.streams / 1e3, cpu, hang_up)


def run(given: argparse.Namespace) -> None:
    _allow_files(2 * given.streams + _OTHER_FILES)
    cores = divided()
    with tempfile.TemporaryDirectory(prefix="deepinfer-streams-") as folder:
        home = Path(folder)
        programs = compiled(home)
        with two_engines(programs.engine, home, cores.others) as engines:
            load, site = Load(programs.load, home, cores.others), Site(home, home, cores, engines)
            say("starting serve")
            with deepinfer(site) as gateway:
                held = hold(gateway, engines, load, given)
    seen = held.seen
    print(
        f"{seen.answering} of {given.streams} streams answered, the first byte after {seen.first_p99 * 1e3:.0f} ms at"
        f" most for 99 %; {seen.failed + seen.ended_early} ended before their time; {seen.events} chunks;"
        f" the gateway took {held.cpu_share:.0%} of a core"
    )
    if seen.answering < given.streams or seen.failed or seen.ended_early:
        raise RunEnded("Not every stream ran to its end; see above.")
    print(
        f"bench-streams kb_per_stream={held.kilobytes:.1f} longest_gap_seconds={seen.longest_gap:.3f}"
        f" hangup_seconds={held.hang_up_seconds:.3f}",
        flush=True,
    )


def _allow_files(needed: int) -> None:
    """For this process and all that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise RunEnded(
            f"A process may open {most} files here and the gateway needs {needed}; raise the limit"
            f" (`ulimit -Hn {needed}` as root), or take fewer with --streams."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """The process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway.streams",
        description="Hold many slow streams open through one gateway process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0, help="until all hang up")
    parser.add_argument("--pace-ms", type=float, default=1000.0, help="between two chunks of a stream")
    given = parser.parse_args()
    return exit_status(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
