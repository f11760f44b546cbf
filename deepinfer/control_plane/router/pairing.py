"""Whether a prompt is prefilled by a replica of its own before the one that decodes, and by which. Pure.

Both ways are priced in seconds. The replica that decodes, alone, makes its streams stand still while it prefills: such
a second counts twice, for that is what the label asks to be spared. A pair costs what the other's queue and prefill
take, and the hand-over: a fixed part, and the transfer of all that the decoding replica does not hold yet. So short
prompts, those it holds already, and those for which the prefill replicas are too busy go straight to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

PREFILL_RATE: Final = 4000.0
"""Tokens a second, where neither side has measured one: the decoding ones seldom do."""
TRANSFER_RATE: Final = 50_000.0
"""Tokens of KV a second between two engines: 128 KiB each at 50 Gbit/s."""
HANDOVER_SECONDS: Final = 0.01
"""One more request, its answer, and the transfer's begin."""
SPARED: Final = 2.0
"""What a second of prefilling costs on a replica that decodes."""


class Side(Struct, frozen=True):
    """A replica that may prefill. `resident`: tokens of the prompt that it holds."""

    placement: str
    rate: float = 0.0  # tokens a second; 0: not known
    queue_seconds: float = 0.0  # of prompts before this one
    resident: float = 0.0
    last_used: int = 0


class Pair(Struct, frozen=True):
    """`prefill`: the placement to prefill at first; "" for none. The seconds to the first token, as far as foreseen."""

    prefill: str
    seconds: float = 0.0


def pair(prompt_tokens: float, decoding: Side, prefilling: Sequence[Side]) -> Pair:
    """For a replica that was chosen to decode; `prefilling` are those that are ready, trusted and have room."""
    if not prefilling:
        return Pair("")
    known = [side.rate for side in (*prefilling, decoding) if side.rate]
    usual = sum(known) / len(known) if known else PREFILL_RATE
    missing = max(0.0, prompt_tokens - decoding.resident)
    handover = HANDOVER_SECONDS + missing / TRANSFER_RATE
    alone = decoding.queue_seconds + SPARED * missing / (decoding.rate or usual)
    seconds, best = min(
        ((_seconds(prompt_tokens, side, usual), side) for side in prefilling),
        key=lambda priced: (priced[0], priced[1].last_used, priced[1].placement),
    )
    return Pair(best.placement, seconds + handover) if seconds + handover < alone else Pair("")


def _seconds(prompt_tokens: float, side: Side, usual: float) -> float:
    return side.queue_seconds + max(0.0, prompt_tokens - side.resident) / (side.rate or usual)
