"""When a prompt is prefilled by another replica than the one that answers, and by which: values in and values out."""

from __future__ import annotations

import pytest

from deepinfer.control_plane.router.pairing import Side, pair

IDLE = Side("d", 8000.0)


@pytest.mark.parametrize(
    ("tokens", "decoding", "prefilling", "chosen"),
    [
        (4000, IDLE, [], ""),
        (4000, IDLE, [Side("p", 8000.0)], "p"),
        (4000, Side("d"), [Side("p")], "p"),  # where nothing was measured yet
        (4000, Side("d"), [Side("p", 100.0)], "p"),  # the other one is taken for as slow
        (50, IDLE, [Side("p", 8000.0)], ""),  # the hand-over takes longer
        (4000, Side("d", 8000.0, resident=3990), [Side("p", 8000.0)], ""),
        (4000, Side("d", 8000.0, resident=3990), [Side("p", 8000.0, resident=4000)], ""),
        (4000, IDLE, [Side("p", 8000.0, queue_seconds=5.0)], ""),  # its queue is longer than what is spared
        (4000, Side("d", 8000.0, queue_seconds=5.0), [Side("p", 8000.0, queue_seconds=5.0)], "p"),
        (4000, IDLE, [Side("p", 8000.0, queue_seconds=0.125), Side("q", 8000.0)], "q"),
        (4000, IDLE, [Side("p", 8000.0), Side("q", 8000.0, queue_seconds=0.125, resident=3000)], "q"),
        (4000, IDLE, [Side("p", 2000.0), Side("q", 8000.0, queue_seconds=0.25)], "q"),
        (4000, IDLE, [Side("p", 1000.0)], ""),  # four seconds for what is half a one here
        (4000, IDLE, [Side("p", 8000.0, last_used=2), Side("q", 8000.0, last_used=1)], "q"),
    ],
)
def test_the_cheaper_way_is_taken(tokens: float, decoding: Side, prefilling: list[Side], chosen: str) -> None:
    assert pair(tokens, decoding, prefilling).prefill == chosen
    assert pair(tokens, decoding, prefilling[::-1]).prefill == chosen
