"""Gateways beside each other over the same two engines, which cost nothing: `python -m benchmarks.gateway`.

Each gateway has the same one core of this machine. Their rounds alternate; the table has medians, and the last line the
medians of our figures over vllm-router's in the same round. A peer that cannot be had is named and left out.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.exit_status import exit_status
from benchmarks.fleet.until import RunEnded, say
from benchmarks.gateway.chat import TURNS
from benchmarks.gateway.cores import divided
from benchmarks.gateway.deepinfer_serve import deepinfer
from benchmarks.gateway.dynamo import dynamo
from benchmarks.gateway.engines import two_engines
from benchmarks.gateway.litellm_proxy import litellm
from benchmarks.gateway.load import Load
from benchmarks.gateway.measuring import Bench, Measured
from benchmarks.gateway.nginx import nginx
from benchmarks.gateway.programs import compiled
from benchmarks.gateway.ratios import ratios
from benchmarks.gateway.running import CannotRun, Gateway, Site, Start
from benchmarks.gateway.rust_routers import VLLM_ROUTER, sglang_router, vllm_router
from benchmarks.gateway.table import table
from benchmarks.peers_folder import peers_folder

_PEERS: dict[str, Start] = {
    "nginx": nginx,
    VLLM_ROUTER: vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
    "dynamo": dynamo,
}
_OURS = "deepinfer"


@contextmanager
def _direct(site: Site) -> Iterator[Gateway]:
    yield Gateway("none: an engine itself", site.engines.ports[0])


def measure(peers: list[str], rounds: int, bench: Bench, site: Site) -> str:
    """Its figures, in one line; the table is printed."""
    starts: dict[str, Start] = {"none": _direct, _OURS: deepinfer, **{name: _PEERS[name] for name in peers}}
    with ExitStack() as stack:
        gateways = {name: started for name, start in starts.items() if (started := _started(stack, name, start(site)))}
        found = {name: list[Measured]() for name in gateways}
        for number in range(1, rounds + 1):
            for name in tuple(found):
                say(f"round {number} of {rounds}: {gateways[name].name}")
                try:
                    found[name].append(bench.measured(gateways[name]))
                except CannotRun as error:
                    _leave_out(name, error)
                    del found[name]
        memory = {gateway.name: _memory(gateway) for gateway in gateways.values()}
    print(table({gateways[name].name: measured for name, measured in found.items()}, memory))
    if any(measured.failed for measured in found[_OURS]):
        raise RunEnded("deepinfer failed requests that it should have answered; see the table.")
    return f"bench-gateway {ratios(found[_OURS], found.get(VLLM_ROUTER, []))}"


def _started(stack: ExitStack, name: str, start: AbstractContextManager[Gateway]) -> Gateway | None:
    say(f"starting {name}")
    try:
        return stack.enter_context(start)
    except CannotRun as error:
        _leave_out(name, error)
        return None


def _leave_out(name: str, error: CannotRun) -> None:
    """Only what it is about cannot be left out."""
    if name == _OURS:
        raise error
    print(f"{name} is left out: {error}", flush=True)


def _memory(gateway: Gateway) -> int:
    return gateway.processes.memory_bytes() if gateway.processes else 0


def run(given: argparse.Namespace) -> None:
    cores = divided()
    if not cores.are_apart:
        say("This machine has one core: gateways share it with engines and load, so times say little.")
    with tempfile.TemporaryDirectory(prefix="deepinfer-gateway-") as folder:
        home = Path(folder)
        programs = compiled(home)
        with two_engines(programs.engine, home, cores.others) as engines:
            site = Site(home, given.cache.absolute(), cores, engines)
            bench = Bench(Load(programs.load, home, cores.others), engines, given.seconds, given.turns)
            print(measure(given.peers, given.rounds, bench, site), flush=True)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway",
        description="Measure deepinfer's gateway beside others.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--peers", default=",".join(_PEERS), help="which, with commas between them; 'none': no peers")
    parser.add_argument("--cache", type=Path, default=peers_folder(), help="where peers are installed, once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--turns", type=int, default=TURNS, help="that a chat has had: 0 for one of 400 bytes")
    parser.add_argument("--quick", action="store_true", help="one round of half a second for each load")
    given = parser.parse_args()
    given.peers = [] if given.peers == "none" else given.peers.split(",")
    if unknown := [name for name in given.peers if name not in _PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(_PEERS)}")
    if given.quick:
        given.rounds, given.seconds = 1, 0.5
    return given


def main() -> int:
    """The process's exit status."""
    for name in ("deepinfer", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given = _given()
    return exit_status(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
