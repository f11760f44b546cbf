"""A TCP connection to where an engine takes its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from deepinfer.fleet.errors import EngineUnreachable

CONNECT_SECONDS: Final = 5.0

P = TypeVar("P", bound=asyncio.Protocol)


async def connect(make: Callable[[], P], endpoint: str, target: str) -> P:
    """`endpoint` is "host:port", `target` the engine in words. `EngineUnreachable` when nobody takes it there."""
    host, _, port = endpoint.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, protocol = await loop.create_connection(make, host.strip("[]"), int(port))
    except TimeoutError as error:
        waited = f"it did not answer within {CONNECT_SECONDS:.0f} s"
        raise EngineUnreachable(f"The engine at {target} takes no calls at {endpoint}: {waited}.") from error
    except (OSError, ValueError) as error:
        raise EngineUnreachable(f"The engine at {target} takes no calls at {endpoint}: {error}.") from error
    return protocol
