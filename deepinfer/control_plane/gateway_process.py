"""One more gateway of `serve` beside the main process: gateway, router and management API. It never leads.

It is told on stdin what to do, by the main process alone, and drains when that is gone. It listens once it knows the
fleet and has met its engines: until then others serve its clients better.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.front import gateway_parts, keep_up
from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.front_door import front_door
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.server import Listening, Sharing, listening
from deepinfer.control_plane.gateway.shortcut import Shortcut
from deepinfer.control_plane.gateway.siblings import Siblings
from deepinfer.control_plane.management.on_demand import OnDemand
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.routing import GARBAGE_THRESHOLDS
from deepinfer.control_plane.stop_signal import run_until, stop_signal
from deepinfer.control_plane.store_connection import Connection, answering_store
from deepinfer.fleet.admin_token import admin_token
from deepinfer.fleet.api_key import new_secret
from deepinfer.fleet.config import Config
from deepinfer.fleet.entry import run_process
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resource import Resource

MEETING_SECONDS = 1.0
"""For the engines that are said to be ready to say so themselves; who does not answer is not waited for longer."""


class Orders(Resource):
    """The main process's configuration, with the port that it has, and which of its gateways this is."""

    config: Config
    number: int
    folder: Path  # of the siblings' sockets


async def run(orders: Orders) -> None:
    """Until a signal, or the end of the main process, ends it."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    asked_to_stop = stop_signal()
    serve = orders.config.serve
    connection = Connection()
    siblings = Siblings(orders.folder, orders.number, serve.gateways)
    keys = KeyRing(admin_token(serve.port) or new_secret())
    async with asyncio.TaskGroup() as tasks, gateway_parts(serve, siblings) as parts:
        watching = tasks.create_task(_watch_main_process(siblings, asked_to_stop))
        gateway = Gateway(parts, OnDemand(connection, parts.replicas.answering))
        door = front_door(gateway, keys, serve)
        async with (
            siblings.answering(parts.metrics.page, parts.admission.router.decisions.told),
            AsyncExitStack() as server,
        ):
            how = Listening(parts.drain, serve, Sharing.JOINS, Shortcut(door, gateway.relay, parts.drain))
            listen = partial(server.enter_async_context, listening(door, serve.host, serve.port, how))
            await run_until(asked_to_stop, _follow_fleet(orders.config, connection, (parts, keys), listen))
        watching.cancel()


async def _watch_main_process(siblings: Siblings, asked_to_stop: asyncio.Event) -> None:
    """Its end of stdin stays open as long as it lives."""
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    await stdin.read()
    siblings.forget(0)
    asked_to_stop.set()


async def _follow_fleet(
    config: Config, connection: Connection, front: tuple[Parts, KeyRing], listen: Callable[[], Awaitable[int]]
) -> None:
    """Never returns."""
    parts, keys = front
    async with (
        answering_store(config.etcd) as store,
        Mirror.following(store) as mirror,
        asyncio.TaskGroup() as tasks,
    ):
        connection.mirror = mirror
        known, turned = asyncio.Event(), asyncio.Event()
        parts.replicas.when_turned = turned.set
        tasks.create_task(keep_up(mirror, parts, keys, known))
        await known.wait()
        await _meet_engines(parts.replicas, turned)
        await listen()


async def _meet_engines(replicas: Replicas, turned: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(MEETING_SECONDS):
            while any(state == "unreachable" for _, state in replicas.counts()):
                turned.clear()
                await turned.wait()


def main() -> int:
    orders = Orders.model_validate_json(sys.stdin.buffer.readline())
    return run_process(lambda: run(orders), f"gateway {orders.number}")


if __name__ == "__main__":
    sys.exit(main())
