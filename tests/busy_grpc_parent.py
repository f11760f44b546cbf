"""A process that runs errands while its gRPC is busy; prints the errands' exit statuses as JSON.

Run it with `deepinfer` imported first, as in every process of ours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from typing import Any

import grpc
import grpc.aio
import uvloop

from deepinfer.fleet.errand import run_errand


async def errands_beside_calls(count: int) -> list[int]:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test/Echo", None, None)

        async def call_for_ever() -> None:
            for number in itertools.count():
                await call(b"%d" % number)

        callers = [asyncio.create_task(call_for_ever()) for _ in range(4)]
        statuses = [
            (await run_errand("this", environment=os.environ, on_line=lambda line: None)).exit_status
            for _ in range(count)
        ]
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    await server.stop(None)
    return statuses


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(errands_beside_calls(int(sys.argv[1])))))
