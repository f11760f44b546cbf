"""Which replica answers a request. Pure: no clock, no randomness, no I/O, so a choice can be replayed and explained.

Thin for now: the fewest requests in flight from here, then the shortest queue in the engine, then whoever waited
longest for a turn. What a prompt would find in a replica's cache, and what time it would cost, is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest


def choose(candidates: Iterable[Candidate], request: RoutedRequest) -> Candidate | None:
    """The best candidate that has not failed this request; None when there is none."""
    return min((c for c in candidates if c.placement not in request.tried), key=_expected_wait, default=None)


def _expected_wait(candidate: Candidate) -> tuple[int, int, int, str]:
    # The name comes last, so that the order of the candidates never matters.
    return candidate.in_flight, candidate.load.waiting, candidate.last_used, candidate.placement
