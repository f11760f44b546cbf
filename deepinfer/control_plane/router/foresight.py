"""How good what was foreseen of requests at one engine has been: sums, to be told as metrics."""

from __future__ import annotations


class Foresight:
    """Only what could be compared is counted: tokens of answers that told them, seconds of streams."""

    __slots__ = (
        "cached_came",
        "cached_foreseen",
        "first_seconds_came",
        "first_seconds_error",
        "first_seconds_foreseen",
        "index_errors",
    )

    def __init__(self) -> None:
        self.cached_foreseen = 0.0  # tokens
        self.cached_came = 0
        self.first_seconds_foreseen = 0.0
        self.first_seconds_came = 0.0
        self.first_seconds_error = 0.0  # sum of the differences, each without its sign
        self.index_errors = 0  # how often the index turned out wrong

    def cached(self, foreseen: float, came: int) -> None:
        self.cached_foreseen += foreseen
        self.cached_came += came

    def first_token(self, foreseen: float, came: float) -> None:
        self.first_seconds_foreseen += foreseen
        self.first_seconds_came += came
        self.first_seconds_error += abs(came - foreseen)
