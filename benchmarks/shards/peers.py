"""One stage beside others: transformers' `generate` in its process, and vLLM's own server for the CPU.

transformers and our engine are asked in their processes. vLLM is asked over HTTP, as it is served, and so are we:
`deepinfer up`, with gateway, shim and engine, gets the same requests from the same client.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.engine import deepinfer_up, ours
from benchmarks.free_port import free_port
from benchmarks.shards.figures import Rates, median_ratio, table
from benchmarks.shards.parts import STREAMS, Bench, Figures
from benchmarks.shards.rounds import Ask, rounds
from benchmarks.shards.sides import NEW_TOKENS, Cut, LineProcess, order_of, side
from benchmarks.vllm_servers import MODEL, Side, installed_vllm, shims_openmp, wait_until
from tests.bare_vllm import ON_CPU, BareVllm

VLLM = {"served_model_name": MODEL, "dtype": "bfloat16", "max_model_len": 2048, "enable_prefix_caching": False}


def peers(bench: Bench) -> Figures:
    return {**_transformers(bench), **_vllm(bench, installed_vllm())}


def _transformers(bench: Bench) -> Figures:
    with ExitStack() as stack:
        here = stack.enter_context(side("one stage", bench.folder, Cut(threads=2)))
        peer = LineProcess("benchmarks.transformers_peer", str(bench.folder))
        stack.callback(peer.close)
        print(f"transformers: {peer.told()}", flush=True)

        def seconds(prompts: list[list[int]]) -> float:
            return float(peer.asked(order_of(prompts))["seconds"])

        sides: dict[str, Ask[float]] = {
            "one stage": lambda prompts: here.answer(prompts).seconds,
            "transformers": seconds,
        }
        ratios = _ratios(bench, sides, "transformers")
    return {"one_stage_b1_vs_transformers": ratios[1]}


def _vllm(bench: Bench, python: Path) -> Figures:
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as home,
        deepinfer_up(port, Path(home)),
        _vllm_server(bench.folder, python, Path(home)) as peer,
    ):
        sides: dict[str, Ask[float]] = {
            "one stage over HTTP": lambda prompts: ours(port, prompts),
            "vLLM": lambda prompts: ours(peer.port, prompts),
        }
        ratios = _ratios(bench, sides, "vLLM")
    return {"one_stage_b32_vs_vllm": ratios[32]}


def _ratios(bench: Bench, sides: dict[str, Ask[float]], theirs: str) -> dict[int, float]:
    """Streams -> the first of the sides beside `theirs`."""
    first, *_ = sides
    found: dict[int, float] = {}
    for streams in STREAMS:
        taken = rounds(bench.folder, streams, bench.count, sides)
        rates: Rates = [{name: streams * NEW_TOKENS / one[name] for name in one} for one in taken]
        print("\n".join(table(streams, rates, theirs)), flush=True)
        found[streams] = median_ratio(rates, first, theirs)
    return found


@contextmanager
def _vllm_server(folder: Path, python: Path, home: Path) -> Iterator[Side]:
    """As fast as it gets here: compiled, with Intel's OpenMP."""
    server = BareVllm(python, home / "vllm.log", {"model": folder, **VLLM}, ON_CPU | shims_openmp(python))
    try:
        wait_until("vLLM", server.is_ready, lambda: "starting")
        yield Side("vLLM", server.port, (server.pid,))
    finally:
        server.stop()
