"""The engine's load and progress, from the statistics vLLM keeps anyway: one record a step, read as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from deepinfer.engine_shim.token_engine import EngineLoad

_NEWEST_WEIGHS: Final = 0.1
_TELLING_TOKENS: Final = 32
"""Of a prompt: what fewer take is mostly a step's own time."""


class LoadMeter:
    """Filled by vLLM's stat logger on the event loop, one for all data-parallel ranks."""

    def __init__(self) -> None:
        self.work_done = 0  # grows at every step the engine tells of
        self.finished = asyncio.Event()  # set when requests have ended; whoever waits for it clears it
        self._running: dict[int, int] = {}
        self._kv_usage: dict[int, float] = {}
        self._prefill_tokens = self._prefill_rates = 0.0  # of the latest prompts, the older the less
        self._token_seconds = 0.0

    def load(self, unfinished: int, waiting_tokens: int, kv_blocks: int) -> EngineLoad:
        """`unfinished` requests are known at once, how many of them run only from the last step."""
        running = min(sum(self._running.values()), unfinished)
        usage = sum(self._kv_usage.values()) / max(1, len(self._kv_usage))
        return EngineLoad(
            running=running,
            waiting=unfinished - running,
            waiting_prefill_tokens=waiting_tokens,
            kv_blocks_used=round(usage * kv_blocks) if unfinished else 0,
            prefill_tokens_per_second=self._prefill_rates / self._prefill_tokens if self._prefill_tokens else 0.0,
            seconds_per_output_token=self._token_seconds,
        )

    def record(self, scheduler: Any, iteration: Any, engine: int) -> None:
        """What one step of one rank said; either part may be missing."""
        if scheduler is not None:
            self._running[engine] = scheduler.num_running_reqs
            self._kv_usage[engine] = scheduler.kv_cache_usage
        self.work_done += 1
        if iteration is None:
            return
        if iteration.finished_requests:
            self.finished.set()
        for request in iteration.finished_requests:
            self._learn_prefill(request)
        latencies = iteration.inter_token_latencies_iter
        if latencies and not _prefilled(iteration, self._running.get(engine, 0)):
            self._token_seconds = _blended(self._token_seconds, sum(latencies) / len(latencies))

    def _learn_prefill(self, request: Any) -> None:
        computed = request.num_prompt_tokens - getattr(request, "num_cached_tokens", 0)
        if computed >= _TELLING_TOKENS and request.prefill_time > 0:
            # Weighed by tokens, as a short prompt's time is mostly a step's own; and a mean of rates, not the whole
            # time through the whole work: one that a kernel was compiled for first would count for many others.
            self._prefill_tokens += computed - _NEWEST_WEIGHS * self._prefill_tokens
            rates = computed * computed / request.prefill_time
            self._prefill_rates += rates - _NEWEST_WEIGHS * self._prefill_rates


def stat_logger(base: type, meter: LoadMeter) -> Callable[[Any, int], Any]:
    """A factory as AsyncLLM wants it, for the installed version's base class."""

    class MeterLogger(base):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._engine = engine_index

        def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **named: Any) -> None:
            meter.record(scheduler_stats, iteration_stats, self._engine)

        def log_engine_initialized(self) -> None:
            pass  # what the engine is, is told by GetInfo

    return MeterLogger


def _prefilled(iteration: Any, running: int) -> bool:
    """Whether the step computed prompts too: the time of that is not a token's. `running` requests are left after it.

    A prompt's last chunk shows by its first token; an earlier one by a request that runs and was given nothing.
    """
    given = len(iteration.inter_token_latencies_iter) + len(iteration.time_to_first_tokens_iter)
    return bool(iteration.time_to_first_tokens_iter) or given < running + len(iteration.finished_requests)


def _blended(mean: float, newest: float) -> float:
    return newest if mean == 0.0 else mean + _NEWEST_WEIGHS * (newest - mean)
