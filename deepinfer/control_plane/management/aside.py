"""What takes long is computed beside the loop that relays answers, one at a time: a large plan takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fastapi import Request

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """One for each application."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def __call__(self, compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._turn:
            return await asyncio.to_thread(compute, *args, **kwargs)


def aside_of(request: Request) -> Aside:
    aside: Aside = request.app.state.aside
    return aside
