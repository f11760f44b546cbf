"""A gateway in a process of its own, which can be killed: `python -m tests.gateway_process ENDPOINT...`.

Prints its address once it knows what its engines hold.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tests.gateway_parts import fleet_of, running_gateway, until


async def serve(endpoints: list[str]) -> None:
    async with running_gateway(fleet_of(*endpoints)) as gateway:
        await until(lambda: len(gateway.replicas.ready("chat")) == len(endpoints))
        for connection in gateway.replicas.ready("chat"):
            await until(lambda known=connection.outlook: not known.doubt(time.monotonic()))  # type: ignore[misc]
        print(gateway.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
