"""Whether an engine with work in hand has stopped computing. Pure: samples in, a standing out.

Health checks do not tell: a stopped engine core leaves everything around it answering. Tokens do. Half-way to its limit
an engine that shows no work is asked for one token of its own; so one request that hangs for reasons of its own (a
grammar that compiles for minutes, a reader that went to sleep) is never taken for a dead engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from deepinfer.engine_shim.token_engine import EngineLoad

PATIENCE_TOKENS: Final = 20
"""A stall is at least this many times what one token takes."""
PATIENCE_PREFILL: Final = 3.0
"""And this many times what the prefill of one step takes at the measured rate."""
_UNMEASURED_PREFILL: Final = 20.0
"""Tokens a second: a large model on a slow CPU, before its rate is known."""
BUSY_PATIENCE: Final = 12.0
"""A second in which the engine's processes computed counts for so much less: some requests have a kernel compiled
first, for tens of seconds in one step. A stopped or waiting process computes nothing."""
STEP_TOKENS: Final = 8192
"""An engine shows its work after each step, and a step prefills no more than about this."""


class Verdict(StrEnum):
    """What a standing calls for."""

    FINE = "fine"
    ASK = "ask"  # for one token
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at an engine."""

    seconds: float  # since the look before, or less: only time in which the engine could be seen counts
    in_hand: int  # requests
    work_done: int
    load: EngineLoad
    busy: bool = False  # its processes used the CPU, whatever came of it


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known after all looks so far."""

    work_done: int
    in_hand: int = 0
    idle_seconds: float = 0.0  # with work in hand and none done; busy ones count less
    limit_seconds: float = 0.0


def after(before: Standing, sample: Sample, stall_seconds: float) -> Standing:
    """`stall_seconds`: the shortest stall there is."""
    seconds = sample.seconds / BUSY_PATIENCE if sample.busy else sample.seconds
    moved = sample.work_done != before.work_done or not sample.in_hand
    return replace(
        before,
        work_done=sample.work_done,
        in_hand=sample.in_hand,
        idle_seconds=0.0 if moved else before.idle_seconds + seconds,
        limit_seconds=limit_seconds(sample.load, stall_seconds),
    )


def verdict(standing: Standing) -> Verdict:
    if standing.idle_seconds >= standing.limit_seconds:
        return Verdict.STALLED
    return Verdict.ASK if standing.idle_seconds >= standing.limit_seconds / 2 else Verdict.FINE


def limit_seconds(load: EngineLoad, stall_seconds: float) -> float:
    """How long an engine with work in hand may show none."""
    prefill = min(load.waiting_prefill_tokens, STEP_TOKENS)
    rate = load.prefill_tokens_per_second / PATIENCE_PREFILL or _UNMEASURED_PREFILL
    return max(stall_seconds, PATIENCE_TOKENS * load.seconds_per_output_token, prefill / rate)
