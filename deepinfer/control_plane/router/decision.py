"""How one request's replica was chosen: kept so that it can be explained."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import msgspec
from msgspec import Struct

from deepinfer.control_plane.router.cost import Cost, Prospect

_KEPT: Final = 1024


class Decision(Struct):
    """What was known, and what came of it. `prospects` and `costs` go together; none where nothing was compared."""

    request: str
    model: str
    policy: str
    chosen: str
    why: str
    prompt_tokens: int = 0
    prospects: tuple[Prospect, ...] = ()
    costs: tuple[Cost, ...] = ()
    foreseen_cached: float = 0.0
    foreseen_first_seconds: float = 0.0
    first_seconds: float | None = None  # until its first bytes; None: not yet
    cached_tokens: int | None = None  # by the engine's word; None: it did not say

    def told(self) -> dict[str, Any]:
        """For people and programs, the cheapest first."""
        ranked = sorted(zip(self.prospects, self.costs, strict=True), key=lambda both: both[1].total)
        return {
            "request": self.request,
            "model": self.model,
            "policy": self.policy,
            "chosen": self.chosen,
            "why": self.why,
            "prompt_tokens": self.prompt_tokens,
            "foreseen": {
                "cached_tokens": round(self.foreseen_cached),
                "first_token_seconds": round(self.foreseen_first_seconds, 4),
            },
            "came": {"cached_tokens": self.cached_tokens, "first_token_seconds": _rounded(self.first_seconds)},
            "candidates": [_candidate(prospect, cost) for prospect, cost in ranked],
        }


class Decisions:
    """The newest ones of one gateway, by request id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Decision] = OrderedDict()

    def add(self, decision: Decision) -> None:
        """A request that was tried again is known by its last replica."""
        self._kept[decision.request] = decision
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def told(self, request: str) -> bytes:
        """As JSON; b"" of a request that is not known, or not any more."""
        decision = self._kept.get(request)
        return b"" if decision is None else msgspec.json.encode(decision.told())


def _candidate(prospect: Prospect, cost: Cost) -> dict[str, Any]:
    return {
        "replica": prospect.placement,
        "seconds": _rounded(cost.total),
        "terms": {name: _rounded(getattr(cost, name)) for name in cost.__struct_fields__},
        "cached_tokens": round(prospect.cached_tokens),
        "cached_known_by": prospect.known_by or "nothing",
        "index_not_used": prospect.doubt,
        "prefill_tokens_per_second": round(prospect.prefill_rate, 1),
        "seconds_per_output_token": _rounded(prospect.token_seconds),
        "prefill_share": round(prospect.prefill_share, 3),
        "running": prospect.running,
        "waiting": prospect.waiting,
        "slowness": round(prospect.slowness, 2),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
