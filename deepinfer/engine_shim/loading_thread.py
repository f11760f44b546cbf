"""Work that blocks for long, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T]) -> _T:
    """In a thread the process need not wait for when it is told to stop (an executor's would be joined)."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, done, failure, result)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[_T], error: BaseException | None, result: _T | None) -> None:
    if done.done():
        return  # nobody waits any more
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)  # type: ignore[arg-type]
