"""Where to cut a model so that its stages take equally long, from what a first cut took. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise


def even_cuts(layers: int, stages: int, taken: Sequence[float], first_cut: int) -> tuple[int, ...]:
    """`taken`: seconds of two stages cut at `first_cut`, where the second one chooses tokens besides."""
    a_layer = taken[0] / first_cut
    choosing = max(0.0, taken[1] - (layers - first_cut) * a_layer)

    def slowest(cuts: tuple[int, ...]) -> tuple[float, int]:
        counts = [stop - start for start, stop in pairwise((0, *cuts, layers))]
        return max(*(a_layer * count for count in counts[:-1]), a_layer * counts[-1] + choosing), max(counts)

    return min(combinations(range(1, layers), stages - 1), key=slowest)
