"""The one loop of control plane and agents: look at everything, make it so, wait until something changed.

Level-triggered: `changed` carries nothing, so a wake-up that is lost, late or doubled delays and never corrupts.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.errors import StoreConflict, StoreUnavailable

log = logging.getLogger(__name__)


async def keep_converging(
    converge: Callable[[], Awaitable[object]],
    changed: asyncio.Event,
    resync_seconds: float = 30.0,
    *,
    rest_seconds: float = 0.0,
) -> None:
    """Call `converge` at once, on every change, and at least every `resync_seconds`. Never returns.

    A failure is logged and tried again, ever more slowly; a conflict means that somebody wrote first, so look again.
    Between two passes there are `rest_seconds`, and half as long as the last one took: a burst of changes is one reason
    to look, and the first one after a rest is not delayed.
    """
    after_failure = Backoff(first=0.2, longest=resync_seconds)
    without_store = Backoff(first=0.2, longest=3.0)  # nothing tells when it is back, and then nobody wants to wait
    after_conflict = Backoff(first=0.01, longest=1.0)
    waits_for_store = False
    while True:
        changed.clear()
        started = asyncio.get_running_loop().time()
        try:
            await converge()
        except StoreConflict as conflict:
            log.debug("%s", conflict)
            await after_conflict.pause()
            continue
        except StoreUnavailable as error:
            log.log(logging.DEBUG if waits_for_store else logging.WARNING, "waiting for the store: %s", error)
            waits_for_store = True
            await without_store.pause()
            continue
        except Exception:
            log.exception("converging failed; trying again")
            await after_failure.pause()
            continue
        after_failure.reset()
        without_store.reset()
        waits_for_store = False
        after_conflict.reset()
        ended = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            async with asyncio.timeout(_spread(resync_seconds)):  # Python 3.11's wait_for can swallow a cancellation
                await changed.wait()
        if rest_seconds:
            rested_at = ended + max(rest_seconds, (ended - started) / 2)
            await asyncio.sleep(max(0.0, rested_at - asyncio.get_running_loop().time()))


def _spread(seconds: float) -> float:
    """Many agents whose placements came in one wave must not look around in one wave ever after."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
