"""What deepinfer costs a vLLM: the same vLLM bare and behind deepinfer, in one run on this machine.

Rounds alternate between the two (bare, ours, ours, bare, …) while the other is idle; what counts is the ratio of each
round, ours over bare, and its median. A round is a batch of 1, 8 or 32 streams of /v1/chat/completions at temperature
0, of a fixed number of tokens; both sides get the same prompts, and no prompt comes twice. Throughput is the tokens of
a batch over its wall time, prefill included. TTFT is the time from the request to the event of the first token, of
requests one after the other. CPU is that of the processes that serve HTTP: vLLM's API server, or `serve` and
the shim; it is compared at the most streams.

Both get the same flags and the same environment; deepinfer's shim then preloads Intel's OpenMP where vLLM's wheel for
the CPU has it, which is part of what it gives. `--same-openmp` gives it to the bare server too: the mere way through
deepinfer. `--floor` measures the bare server against a second one like it: how far from 1 mere noise leads.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stream_load import Batch, StreamLoad
from benchmarks.vllm_servers import MODEL, Side, bare_vllm, deepinfer_vllm

NEW_TOKENS = {1: 32, 8: 48, 32: 64}
"""Streams of a batch -> tokens of each."""
ROUNDS = 8
FIRST_TOKENS_A_ROUND = 10
FIRST_ROUNDS = 3  # of first tokens, for each round of streams: one prefill varies far more than what a batch takes
IDLE_SECONDS = 1.2
"""Before each measurement: processes of vLLM wait for work in a busy loop of one second before they sleep."""


@dataclass(frozen=True)
class Taken:
    """What one batch took, and the server's CPU time for it in seconds."""

    batch: Batch
    cpu: float

    @property
    def first(self) -> float:
        """The median of the times until the first token, in seconds."""
        return statistics.median(self.batch.firsts)

    @property
    def rate(self) -> float:
        return self.batch.tokens / self.batch.seconds

    @property
    def cpu_per_token(self) -> float:
        """In microseconds."""
        return self.cpu / self.batch.tokens * 1e6


@dataclass(frozen=True)
class Pair:
    """One round: the same batch on both sides."""

    ours: Taken
    bare: Taken


@dataclass(frozen=True)
class Bench:
    """Both servers and the process that asks them."""

    ours: Side
    bare: Side
    load: StreamLoad

    def pair(self, number: int, bodies: list[dict[str, Any]], *, at_once: bool = True) -> Pair:
        """Who is first changes with every round."""
        if number % 2:
            ours = self._take(self.ours, bodies, at_once)
            return Pair(ours, self._take(self.bare, bodies, at_once))
        bare = self._take(self.bare, bodies, at_once)
        return Pair(self._take(self.ours, bodies, at_once), bare)

    def _take(self, side: Side, bodies: list[dict[str, Any]], at_once: bool) -> Taken:
        time.sleep(IDLE_SECONDS)
        before = side.cpu_seconds()
        batch = self.load.batch(side.port, bodies, at_once)
        return Taken(batch, side.cpu_seconds() - before)


class Prompts:
    """Short ones, each of them new."""

    def __init__(self) -> None:
        self._asked = 0

    def bodies(self, streams: int, tokens: int) -> list[dict[str, Any]]:
        return [self._body(tokens) for _ in range(streams)]

    def _body(self, tokens: int) -> dict[str, Any]:
        self._asked += 1
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Tell me the story of house number {self._asked}."}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def measure(bench: Bench, rounds: int) -> tuple[list[Pair], dict[int, list[Pair]]]:
    """(first tokens, streams -> rounds)."""
    prompts = Prompts()
    firsts = first_tokens(bench, prompts, rounds)
    return firsts, {streams: batches(bench, prompts, streams, rounds) for streams in NEW_TOKENS}


def batches(bench: Bench, prompts: Prompts, streams: int, rounds: int) -> list[Pair]:
    bench.pair(0, prompts.bodies(streams, NEW_TOKENS[streams] // 2))  # warms both
    pairs = []
    for number in range(rounds):
        pairs.append(pair := bench.pair(number, prompts.bodies(streams, NEW_TOKENS[streams])))
        print(
            f"{streams:2d} streams, round {number + 1:2d}/{rounds}: "
            f"bare {pair.bare.rate:6.1f} tok/s, ours {pair.ours.rate:6.1f} tok/s, {_throughput(pair):.3f}",
            flush=True,
        )
    return pairs


def first_tokens(bench: Bench, prompts: Prompts, rounds: int) -> list[Pair]:
    bench.pair(0, prompts.bodies(2, 2), at_once=False)  # warms both
    pairs = []
    rounds *= FIRST_ROUNDS
    for number in range(rounds):
        bodies = prompts.bodies(FIRST_TOKENS_A_ROUND, 2)
        pairs.append(pair := bench.pair(number, bodies, at_once=False))
        print(
            f"first tokens, round {number + 1:2d}/{rounds}: "
            f"bare {pair.bare.first * 1e3:5.1f} ms, ours {pair.ours.first * 1e3:5.1f} ms, {_ttft(pair):.3f}",
            flush=True,
        )
    return pairs


def _throughput(pair: Pair) -> float:
    return pair.ours.rate / pair.bare.rate


def _cpu(pair: Pair) -> float:
    return pair.ours.cpu_per_token / pair.bare.cpu_per_token


def _ttft(pair: Pair) -> float:
    return pair.ours.first / pair.bare.first


def table(by_streams: dict[int, list[Pair]], firsts: list[Pair]) -> Iterator[str]:
    yield f"{'':24}{'bare':>9}{'ours':>9}{'ratio':>8}"
    for streams, pairs in by_streams.items():
        yield _row(f"tokens/s, {streams} streams", pairs, lambda t: t.rate, _spread(pairs, _throughput))
    yield _row("TTFT p50, ms", firsts, lambda t: t.first * 1e3, _spread(firsts, _ttft))
    for streams, pairs in by_streams.items():
        yield _row(f"CPU us/token, {streams}", pairs, lambda t: t.cpu_per_token, _spread(pairs, _cpu))
    for streams, pairs in by_streams.items():
        yield _row(f"events/token, {streams}", pairs, lambda t: t.batch.events / t.batch.tokens, "")
    for streams, pairs in by_streams.items():
        yield _row(f"load's us/token, {streams}", pairs, lambda t: t.batch.load_cpu / t.batch.tokens * 1e6, "")


def _row(what: str, pairs: list[Pair], value: Callable[[Taken], float], ratio: str) -> str:
    bare = statistics.median(value(pair.bare) for pair in pairs)
    ours = statistics.median(value(pair.ours) for pair in pairs)
    return f"{what:24}{bare:9.2f}{ours:9.2f}{ratio}"


def _spread(pairs: list[Pair], ratio: Callable[[Pair], float]) -> str:
    """The median of the rounds' ratios and its standard error."""
    ratios = [ratio(pair) for pair in pairs]
    error = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    return f"{statistics.median(ratios):8.3f} +- {error:.3f}"


def last_line(by_streams: dict[int, list[Pair]], firsts: list[Pair]) -> str:
    figures = {f"throughput_{n}": statistics.median(map(_throughput, pairs)) for n, pairs in by_streams.items()}
    figures["ttft_p50"] = statistics.median(map(_ttft, firsts))
    figures["cpu_per_token"] = statistics.median(map(_cpu, by_streams[max(by_streams)]))
    return "bench-vllm " + " ".join(f"{name}={figure:.3f}" for name, figure in figures.items())


@contextmanager
def _both(arguments: argparse.Namespace, home: Path) -> Iterator[tuple[Side, Side]]:
    """(ours, bare); deepinfer comes first, because it fetches the model."""

    def bare_side(name: str) -> AbstractContextManager[Side]:
        return bare_vllm(name, home, arguments.dtype, arguments.python, same_openmp=arguments.same_openmp)

    first = bare_side("second") if arguments.floor else deepinfer_vllm("ours", home, arguments.dtype)
    with first as ours, bare_side("bare") as bare:
        yield ours, bare


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.vllm", description="deepinfer beside a bare vLLM")
    parser.add_argument("--floor", action="store_true", help="a second bare vLLM in deepinfer's place: the noise")
    parser.add_argument("--same-openmp", action="store_true", help="the bare vLLM computes with Intel's OpenMP too")
    parser.add_argument("--python", type=Path, help="the interpreter of the bare vLLM, if not the installed one")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is far slower on a CPU without bf16 instructions")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at least 2; fewer than usual are a first look")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2; one round has no spread.")
    return arguments


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    with (
        tempfile.TemporaryDirectory() as home,
        _both(arguments, Path(home)) as (ours, bare),
        closing(StreamLoad()) as load,
    ):
        firsts, by_streams = measure(Bench(ours, bare, load), arguments.rounds)
    print("\n".join(table(by_streams, firsts)))
    print(last_line(by_streams, firsts))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
