"""The engines behind every gateway: two vLLMs with caches so small that prompts push one another out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from deepinfer.fleet.places import cache_dir
from tests.bare_vllm import ON_CPU

MODEL = "smollm2"
REPLICAS = 2
BLOCK = 32
START_SECONDS = 300.0
MAX_MODEL_LEN = 2048
DTYPE = "bfloat16"
FLAGS: Mapping[str, Any] = {
    "enforce_eager": True,
    "block_size": BLOCK,
    "num_gpu_blocks_override": 192,
    "enable_prefix_caching": True,
    "enable_prompt_tokens_details": True,
}
ENVIRONMENT: Mapping[str, str] = ON_CPU | {"OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1"}
"""One thread computes, and there is the endpoint that empties a cache."""
FLUSH: Mapping[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
"""vLLM tells what became of its cache with its next step, so an emptied one needs one; this fills no block."""


def model_folder() -> Path:
    return cache_dir() / "models" / "smollm2-135m-instruct"


def pin(engines: Sequence[int]) -> None:
    """Each, by the process it was started as, to a core of its own: its processes wait for each other by spinning, and
    two engines on the same cores would measure that."""
    cores = sorted(os.sched_getaffinity(0))
    for number, engine in enumerate(engines):
        root = psutil.Process(engine)
        for process in (root, *root.children(recursive=True)):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {cores[number % len(cores)]})


@dataclass(frozen=True)
class Gateway:
    """`end_path` is where it is told that a session is over, where it wants to know."""

    url: str
    end_path: str = ""


class Gateways(Protocol):
    """Of one side, over two replicas that run."""

    def gateway(self, policy: str) -> AbstractContextManager[Gateway]:
        """It routes by this policy, and the caches are empty."""
        ...
