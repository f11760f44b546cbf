"""vLLM's /metrics page to values. Pure.

The page has 50 KB and prometheus_client's parser takes 12 ms of CPU for it; the few lines wanted here are found in 0.3
ms, and in less on a page of them only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_TOKEN_SECONDS: Final = (
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
)  # the older name says the same
_PREFILL_TOKENS: Final = ("vllm:request_prefill_kv_computed_tokens_sum", "vllm:request_prompt_tokens_sum")
"""Both are told when a request ends, as its prefill's seconds are. The older one counts cached tokens too."""
_CAPACITY: Final = "vllm:cache_config_info"

LOAD_NAMES: Final = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:request_success_total",
    "vllm:request_prefill_time_seconds_sum",
    *_KV_USAGE,
    *_PREFILL_TOKENS,
    *(f"{name}_{part}" for name in _TOKEN_SECONDS for part in ("sum", "count")),
)
"""The lines `figures_of` reads."""
CAPACITY_NAMES: Final = (_CAPACITY,)
"""The lines `capacity_of` reads."""

_LINE: Final = re.compile(rf"^({'|'.join(map(re.escape, LOAD_NAMES))})(?:\{{.*\}})? +(\S+)", re.MULTILINE)
_CAPACITY_LINE: Final = re.compile(rf"^{_CAPACITY}\{{(.*)\}}", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """One look. Counters began with the server; what a page does not have is 0. All ranks together."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # of 1, the mean of the ranks
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    prefix_queries: float = 0.0
    requests_ended: float = 0.0
    token_seconds: float = 0.0  # between output tokens, summed
    token_gaps: float = 0.0
    prefill_seconds: float = 0.0
    prefill_tokens: float = 0.0

    @property
    def work(self) -> tuple[float, ...]:
        """Changes whenever a step was computed. In a prefill of several steps only the cache fills."""
        return self.prompt_tokens, self.generation_tokens, self.prefix_queries, self.kv_usage


@dataclass(frozen=True, slots=True)
class Capacity:
    """The KV cache of all ranks."""

    block_size: int = 0
    blocks: int = 0


def figures_of(page: str) -> Figures | None:
    """None: the page is not of a vLLM."""
    sums: dict[str, float] = {}
    lines: dict[str, int] = {}
    for name, said in _LINE.findall(page):
        value = _number(said)
        sums[name] = sums.get(name, 0.0) + value
        lines[name] = lines.get(name, 0) + 1
    if not sums:
        return None
    usage = _first_of(_KV_USAGE, sums)
    token_seconds = _first_of([f"{name}_sum" for name in _TOKEN_SECONDS], sums).removesuffix("_sum")
    return Figures(
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        kv_usage=sums.get(usage, 0.0) / lines.get(usage, 1),
        prompt_tokens=sums.get("vllm:prompt_tokens_total", 0.0),
        generation_tokens=sums.get("vllm:generation_tokens_total", 0.0),
        prefix_queries=sums.get("vllm:prefix_cache_queries_total", 0.0),
        requests_ended=sums.get("vllm:request_success_total", 0.0),
        token_seconds=sums.get(f"{token_seconds}_sum", 0.0),
        token_gaps=sums.get(f"{token_seconds}_count", 0.0),
        prefill_seconds=sums.get("vllm:request_prefill_time_seconds_sum", 0.0),
        prefill_tokens=sums.get(_first_of(_PREFILL_TOKENS, sums), 0.0),
    )


def capacity_of(page: str) -> Capacity:
    """Zeros where the page does not tell."""
    ranks = _CAPACITY_LINE.findall(page)
    sizes = [_label(labels, "block_size") for labels in ranks]
    return Capacity(max(sizes, default=0), sum(_label(labels, "num_gpu_blocks") for labels in ranks))


def _first_of(names: Sequence[str], found: dict[str, float]) -> str:
    """The one to believe where versions tell the same under several names."""
    return next((name for name in names if name in found), names[0])


def _number(said: str) -> float:
    try:
        value = float(said)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _label(labels: str, name: str) -> int:
    found = re.search(rf'(?:^|,){name}="(\d+)"', labels)
    return int(found[1]) if found else 0
