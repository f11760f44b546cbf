"""How replicas are chosen, in figures: what is known of each, and how good what was foreseen has been."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from deepinfer.control_plane.gateway.exposition import Page, labelled
from deepinfer.control_plane.router.outlook import Outlook

_Figures = tuple[tuple[str, str, Callable[[Outlook], float]], ...]
_GAUGES: Final[_Figures] = (
    ("kv_blocks", "KV blocks that the replica is known to hold.", lambda known: known.shelf.blocks),
)
_COUNTERS: Final[_Figures] = (
    (
        "index_errors_total",
        "How often what was foreseen of prompts turned out so wrong that the index was given up for a while.",
        lambda known: known.foresight.index_errors,
    ),
    (
        "cached_tokens_foreseen_total",
        "Tokens of prompts that were foreseen to be cached, where the answer told how many were.",
        lambda known: known.foresight.cached_foreseen,
    ),
    ("cached_tokens_total", "How many of them were.", lambda known: known.foresight.cached_came),
    (
        "first_token_seconds_foreseen_total",
        "Seconds that streams were foreseen to take until their first tokens.",
        lambda known: known.foresight.first_seconds_foreseen,
    ),
    ("first_token_seconds_total", "Seconds that they took.", lambda known: known.foresight.first_seconds_came),
    (
        "first_token_error_seconds_total",
        "Sum of the differences between the two, each without its sign.",
        lambda known: known.foresight.first_seconds_error,
    ),
)


def tell_routing(page: Page, outlooks: Iterable[Outlook], now: float) -> None:
    known = [(labelled(replica=outlook.placement), outlook) for outlook in outlooks]
    page.gauge(
        "deepinfer_router_index_used",
        "1: requests find the replica by what its KV cache holds; 0: by guesses, for the reason told.",
        [_used(outlook, now) for _, outlook in known],
    )
    page.gauge(
        "deepinfer_router_slowness",
        "How many times longer than its rate says the replica's prefills take.",
        [(labels, outlook.speed.slowness(now)) for labels, outlook in known],
    )
    for tell, figures in ((page.gauge, _GAUGES), (page.counter, _COUNTERS)):
        for name, meaning, figure in figures:
            tell(f"deepinfer_router_{name}", meaning, [(labels, figure(outlook)) for labels, outlook in known])


def _used(outlook: Outlook, now: float) -> tuple[str, float]:
    why_not = outlook.doubt(now)
    return labelled(replica=outlook.placement, reason=why_not), float(not why_not)
