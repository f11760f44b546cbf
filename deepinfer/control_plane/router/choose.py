"""Which replica answers a request. Pure: no clock, no randomness, no I/O, so a choice can be replayed and explained.

Thin for now: of those that are trusted, the fewest requests in flight from here, then the shortest queue in the engine,
then whoever waited longest for a turn. What a prompt would find in a replica's cache, and what time it would cost, is
not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.control_plane.router.candidate import RoutedRequest, S, Seen
from deepinfer.control_plane.router.health import Standing
from deepinfer.control_plane.router.split import Split


def choose(candidates: Sequence[S], request: RoutedRequest, split: Split | None = None) -> S | None:
    """The best candidate that has not failed this request; None when there is none."""
    if request.tried:
        candidates = [c for c in candidates if c.placement not in request.tried]
    if split is not None:
        candidates = split.narrowed(candidates)
    return min(candidates, key=_expected_wait, default=None)


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


def _expected_wait(candidate: Seen) -> tuple[int, int, int, int, str]:
    # One that is to be probed comes first. The name comes last, so that the order of the candidates never matters.
    return (
        candidate.standing,
        candidate.in_flight,
        candidate.load.waiting,
        candidate.last_used,
        candidate.placement,
    )
