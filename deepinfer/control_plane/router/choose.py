"""Which replica answers a request. Pure: no clock, no randomness, no I/O, so a choice can be replayed and explained.

By what is said here of each policy, among those that are trusted. Whoever is to be probed comes first, and who has
failed others comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deepinfer.control_plane.router.candidate import RoutedRequest, S, Seen
from deepinfer.control_plane.router.health import Standing
from deepinfer.control_plane.router.split import Split
from deepinfer.fleet.spec import RoutingPolicy

_NEAR: Final = 1.02
_NEAR_SECONDS: Final = 0.001
"""Costs that are no further apart are alike: they are estimates."""
_MIX: Final = 0xBF58476D1CE4E5B9


def trusted(candidates: Sequence[S]) -> Sequence[S]:
    """Those that requests may go to. Half of all stay so, whatever is known of them: if everything fails, the replicas
    are not what is wrong, and all load on few would be."""
    for candidate in candidates:
        if candidate.standing is Standing.EJECTED:
            break
    else:
        return candidates
    ranked = sorted(candidates, key=lambda candidate: (candidate.standing, candidate.last_used, candidate.placement))
    fit = sum(candidate.standing is not Standing.EJECTED for candidate in ranked)
    return ranked[: max(fit, (len(ranked) + 1) // 2)]


def eligible(candidates: Sequence[S], request: RoutedRequest, split: Split | None) -> Sequence[S]:
    """Those that have not failed this request, and whose turn it is."""
    if request.tried:
        candidates = [c for c in candidates if c.placement not in request.tried]
    return candidates if split is None else split.narrowed(candidates)


def least_loaded(candidates: Sequence[S]) -> S:
    """The fewest requests in flight from here, then the shortest queue in the engine, then whoever waited longest."""
    return min(candidates, key=_load)


def cheapest(candidates: Sequence[S], seconds: Sequence[float]) -> int:
    """Which has the least cost, given for each; of those that cost about that, the least loaded: a burst is spread."""
    standings = [candidate.standing for candidate in candidates]
    best = min(standings)
    fit = [at for at, standing in enumerate(standings) if standing is best]
    limit = min([seconds[at] for at in fit]) * _NEAR + _NEAR_SECONDS
    near = [at for at in fit if seconds[at] <= limit]
    return near[0] if len(near) == 1 else min(near, key=lambda at: _load(candidates[at]))


def sticky(candidates: Sequence[S], placement: str) -> S:
    """The one that a session was at, as long as nothing is wrong with it."""
    for candidate in candidates:
        if candidate.placement == placement and candidate.standing is Standing.TRUSTED:
            return candidate
    return least_loaded(candidates)


def in_turn(candidates: Sequence[S]) -> S:
    """Whoever was used longest ago."""
    return min(candidates, key=lambda candidate: (candidate.standing, candidate.last_used, candidate.placement))


def any_of(candidates: Sequence[S], turn: int) -> S:
    """As by chance, but the same for the same turn."""
    best = min(candidate.standing for candidate in candidates)
    among = sorted((c for c in candidates if c.standing is best), key=lambda candidate: candidate.placement)
    mixed = (turn + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = (mixed ^ mixed >> 30) * _MIX % 2**64
    return among[(mixed ^ mixed >> 31) % len(among)]


def by_load(policy: RoutingPolicy, candidates: Sequence[S], turn: int) -> S:
    """By a policy that looks at nothing of the request."""
    if policy is RoutingPolicy.ROUND_ROBIN:
        return in_turn(candidates)
    return any_of(candidates, turn) if policy is RoutingPolicy.RANDOM else least_loaded(candidates)


def _load(candidate: Seen) -> tuple[int, int, int, int, str]:
    # One that is to be probed comes first. The name comes last, so that the order of the candidates never matters.
    return (
        candidate.standing,
        candidate.in_flight,
        candidate.load.waiting,
        candidate.last_used,
        candidate.placement,
    )
