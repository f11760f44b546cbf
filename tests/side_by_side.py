"""Two servers of one model, alive at once and asked the same at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from tests.parity_answers import Answer
from tests.parity_asks import Ask

Server = Callable[[Ask], Answer]
Answers = tuple[Answer, Answer]

T = TypeVar("T")


def both_answers(request: Ask, one: Server, other: Server) -> Answers:
    """Each has only this request to answer."""
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server, request) for server in (one, other)]
    return asked[0].result(), asked[1].result()


def both_say(request: Ask, answers: Callable[[Ask], Answers], tries: int) -> tuple[Any, Any]:
    """What the two answers must agree in; the status is the first part of each. `tries`: of a stream."""

    def comparables() -> tuple[Any, Any]:
        one, other = answers(request)
        return one.comparable(), other.comparable()

    return until_alike(comparables, tries) if request.body.get("stream") else comparables()


def until_alike(told: Callable[[], tuple[T, T]], tries: int) -> tuple[T, T]:
    """Of streams, what both tell. A server that had no CPU for a while puts much of a short answer into one event, and
    its shapes are then not to be seen: streams that differ are asked for again."""
    for _ in range(tries - 1):
        one, other = told()
        if one == other:
            return one, other
    return told()


def named(requests: Iterable[Ask]) -> list[Any]:
    """As a test's parameters."""
    return [pytest.param(request, id=request.name) for request in requests]
