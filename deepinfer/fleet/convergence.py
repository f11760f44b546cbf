"""The one loop of control plane and agents: look at everything, make it so, wait until something changed.

Level-triggered: `changed` carries nothing, so a wake-up that is lost, late or doubled delays and never corrupts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.errors import StoreConflict

log = logging.getLogger(__name__)


async def keep_converging(
    converge: Callable[[], Awaitable[object]], changed: asyncio.Event, resync_seconds: float = 30.0
) -> None:
    """Call `converge` at once, on every change, and at least every `resync_seconds`. Never returns.

    A failure is logged and tried again, ever more slowly; a conflict means that somebody wrote first, so look again.
    """
    after_failure = Backoff(first=0.2, longest=resync_seconds)
    after_conflict = Backoff(first=0.01, longest=1.0)
    while True:
        changed.clear()
        try:
            await converge()
        except StoreConflict as conflict:
            log.debug("%s", conflict)
            await after_conflict.pause()
            continue
        except Exception:
            log.exception("converging failed; trying again")
            await after_failure.pause()
            continue
        after_failure.reset()
        after_conflict.reset()
        with suppress(TimeoutError):
            async with asyncio.timeout(resync_seconds):  # Python 3.11's wait_for can swallow a cancellation
                await changed.wait()
