"""`make bench-kv-index`: a long prompt looked up in all of a large deployment's replicas at once.

A million blocks lie at 64 replicas, and of the prompt that is looked up lies a different part at each. Cold: the names
of the prompt's blocks are computed from its tokens; warm: they are remembered. Memory is what this process grew by.
Seconds are of CPU, since others may use this machine.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Final

import psutil

from deepinfer.control_plane.router.block_chains import BlockChains
from deepinfer.control_plane.router.kv_index import KvIndex, KvShelf
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.kv_contents import KvGroup

BLOCK_SIZE: Final = 16
_VOCABULARY: Final = 49_152
_AT_ONCE: Final = 512
"""Names in a message of an engine."""


def filled(index: KvIndex, replicas: int, blocks: int, prompt: bytes) -> list[KvShelf]:
    """Of `prompt` each replica has more than the one before, and the last one all."""
    chosen = random.Random(1)
    shelves = [index.shelf() for _ in range(replicas)]
    for shelf in shelves:
        shelf.describe((KvGroup(0, BLOCK_SIZE),), BLOCK_SIZE)
    names: Iterator[int] = iter(lambda: chosen.getrandbits(64) or 1, 0)
    for number, shelf in enumerate(shelves):
        held = names_held(prompt, number + 1, replicas)
        shelf.put({0: held})
        left = blocks // replicas - len(held)
        while left > 0:
            some = list(islice(names, min(left, _AT_ONCE)))
            shelf.put({0: some})
            left -= len(some)
    return shelves


def names_held(prompt: bytes, share: int, shares: int) -> list[int]:
    """Of the prompt's begin."""
    names = chain(prompt, BLOCK_SIZE)
    return names[: len(names) * share // shares]


def cpu_seconds(timed: Callable[[], object], rounds: int) -> float:
    """Of one, in the median."""
    taken = []
    for _ in range(rounds):
        began = time.thread_time()
        timed()
        taken.append(time.thread_time() - began)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_index", description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args()
    prompt = token_bytes(random.Random(2).choices(range(_VOCABULARY), k=given.tokens))
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    index = KvIndex()
    shelves = filled(index, given.replicas, given.blocks, prompt)
    gc.collect()
    grown, blocks = process.memory_info().rss - before, sum(shelf.blocks for shelf in shelves)
    known = BlockChains()

    def look_up(chains: BlockChains) -> list[int]:
        return index.resident(chains.names(prompt, BLOCK_SIZE), BLOCK_SIZE, shelves)

    expected = [len(names_held(prompt, n + 1, given.replicas)) * BLOCK_SIZE for n in range(given.replicas)]
    assert look_up(known) == expected, "the index does not know what lies where"
    cold = cpu_seconds(lambda: look_up(BlockChains()), given.rounds)
    warm = cpu_seconds(lambda: look_up(known), given.rounds)
    print(f"{blocks:,} blocks at {given.replicas} replicas: {grown / 1e6:.0f} MB")
    print(f"{given.tokens:,} tokens in all of them: {cold * 1e3:.3f} ms; with names remembered {warm * 1e3:.3f} ms")
    print(f"bench-kv-index lookup_ms={cold * 1e3:.3f} bytes_a_block={grown / blocks:.0f}", flush=True)


if __name__ == "__main__":
    main()
