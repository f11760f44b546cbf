"""Engines that are the same in both fleets: timing, cache and batch, told to deepinfer's simulated engine and Dynamo's.

Dynamo's mocker takes its timing from a profile (`--planner-profile-data`) and interpolates in it: seconds of prefill by
a step's new tokens, seconds of a decoding step by its context. Given two points on a line through zero, and one value
for all contexts, it computes what our engine does: a step takes its new tokens over the prefill rate, and a constant
if it decodes. Both cut prefill into steps of 2,048 tokens. `alone` in the table shows what is left between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

PREFILL_RATE: Final = 2000.0  # tokens a second
TOKEN_SECONDS: Final = 0.02
BLOCK_SIZE: Final = 16
BLOCKS: Final = 4096
SEATS: Final = 32
_STEP_TOKENS: Final = 2048
_MOST_TOKENS: Final = 1e7
"""Beyond any context."""


def sim_engine_args() -> dict[str, Any]:
    return {
        "prefill_tokens_per_second": PREFILL_RATE,
        "seconds_per_output_token": TOKEN_SECONDS,
        "block_size": BLOCK_SIZE,
        "kv_blocks": BLOCKS,
        "max_num_seqs": SEATS,
    }


def mocker_arguments(home: Path, workers: int) -> tuple[str, ...]:
    profile = home / "timing.npz"
    np.savez(
        profile,
        prefill_isl=np.array([0.0, _MOST_TOKENS]),
        prefill_ttft_ms=np.array([0.0, _MOST_TOKENS / PREFILL_RATE * 1e3]),
        decode_active_kv_tokens=np.array([0.0, _MOST_TOKENS]),
        decode_context_length=np.array([0.0, _MOST_TOKENS]),
        decode_itl=np.full((2, 2), TOKEN_SECONDS * 1e3),
    )
    told = {
        "--num-workers": workers,
        "--planner-profile-data": profile,
        "--block-size": BLOCK_SIZE,
        "--num-gpu-blocks-override": BLOCKS,
        "--max-num-seqs": SEATS,
        "--max-num-batched-tokens": _STEP_TOKENS,
    }
    return tuple(str(part) for option in told.items() for part in option)
