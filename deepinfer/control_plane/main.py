"""`serve`: gateway, router, scheduler and management API in one process. Its parts, and how it ends.

The HTTP server is up first and goes down last: requests that run are finished without the store. Everything else may
wait for etcd, and does. SIGTERM and SIGINT end it; a second one does not wait for running requests.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.access.openness import check_openness
from deepinfer.control_plane.gateway.access_log import access_log
from deepinfer.control_plane.gateway.admission import Admission, QueueLimits
from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.front_door import front_door
from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.server import listening
from deepinfer.control_plane.gateway.tracing import tracing
from deepinfer.control_plane.limits.ledger import Ledger
from deepinfer.control_plane.management.app import management_app
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.scheduler.event_log import EventLog
from deepinfer.control_plane.scheduler.scheduler import Scheduler, Surroundings
from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.admin_token import offered
from deepinfer.fleet.api_key import new_secret
from deepinfer.fleet.config import Config, EtcdConfig, InvalidConfig, at_endpoints, load_config
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.embedded_etcd import embedded_etcd
from deepinfer.fleet.entry import run_process
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.etcd_version import version_warning
from deepinfer.fleet.identity import FleetIdentity, founded
from deepinfer.fleet.leadership import Leadership, lead
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.store import EtcdStore
from deepinfer.fleet.store_access import access_of

log = logging.getLogger(__name__)

ROUTER_REST_SECONDS = 0.1
"""After a pass: requests are relayed in the same loop."""
SCHEDULER_REST_SECONDS = 0.05
GARBAGE_THRESHOLDS = (50_000, 20, 20)
"""Of Python's collector. A pass over a large fleet makes as many objects, and nearly all die with it; by default they
would be walked through many times, now and then together with the whole view of the fleet, while all streams wait."""


class Connection:
    """The way to the store, which may not be there yet."""

    def __init__(self) -> None:
        self.mirror: Mirror | None = None

    def __call__(self) -> Mirror:
        if self.mirror is None:
            raise StoreUnavailable("serve is not connected to etcd yet; its log says why. Try again soon.")
        return self.mirror


async def run(config: Config) -> None:
    """Until a signal ends it."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    check_openness(config.serve)
    token = new_secret()
    keys = KeyRing(token)
    asked_to_stop = _stop_signal()
    connection = Connection()
    serve = config.serve
    async with access_log(serve.access_log) as lines, tracing(serve.tracing) as spans, Replicas() as replicas:
        metrics, ledger = Metrics(replicas, lines, spans), Ledger()
        admission = Admission(replicas, QueueLimits(serve.queue_seconds, serve.queue_requests))
        management = management_app(connection, replicas.answering)
        gateway = Gateway(replicas, management, metrics=metrics, admission=admission, ledger=ledger)
        door = front_door(gateway, keys, serve)
        async with listening(door, config.serve.host, config.serve.port) as port:
            ready_line = f"deepinfer serve: ready at {_url(config.serve.host, port)}"
            with offered(token, port) if config.serve.requires_keys else nullcontext():
                await _run_until(asked_to_stop, _run_fleet(config, connection, replicas, keys, ready_line))


async def _run_until(asked: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work)
        await asked.wait()
        working.cancel()


async def _run_fleet(
    config: Config, connection: Connection, replicas: Replicas, keys: KeyRing, ready_line: str
) -> None:
    """Route by what the store says, and lead the fleet if nobody else does. Never returns."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    async with _connected(config.etcd) as store:
        log.info("this is fleet %s", (await _fleet_of(store)).id)
        async with Mirror.following(store) as mirror, asyncio.TaskGroup() as tasks:
            connection.mirror = mirror
            surroundings = Surroundings(replicas.answering, config.serve.node_grace_seconds, EventLog(store))
            news = mirror.listener()
            replicas.when_turned = news.set
            route = partial(_route, mirror, replicas, keys, ready_line)
            schedule = partial(_schedule, mirror, news, surroundings)
            tasks.create_task(keep_converging(route, mirror.listener(), rest_seconds=ROUTER_REST_SECONDS))
            tasks.create_task(_lead(mirror, name, schedule))


async def _fleet_of(store: EtcdStore) -> FleetIdentity:
    """The first control plane of a store founds its fleet. Raises `SchemaTooNew`."""
    backoff = Backoff(first=0.5, longest=10.0)
    while True:
        try:
            return await founded(store)
        except StoreUnavailable as error:
            log.warning("%s Trying again.", error)
        await backoff.pause()


async def _route(mirror: Mirror, replicas: Replicas, keys: KeyRing, ready_line: str) -> None:
    fleet = await mirror.latest()
    keys.update(fleet)
    is_first = not replicas.has_view
    replicas.update(fleet)
    if is_first:
        print(ready_line, flush=True)


async def _lead(mirror: Mirror, name: str, schedule: Callable[[Leadership], Coroutine[Any, Any, None]]) -> None:
    """Not where the store is doubted: a leader that does nothing would keep others from leading. Never returns."""
    while True:
        await mirror.becomes(doubted=False)
        await lead(mirror.store, name, schedule)


async def _schedule(mirror: Mirror, news: asyncio.Event, surroundings: Surroundings, leadership: Leadership) -> None:
    """Returns when the store is doubted."""
    scheduler = Scheduler(mirror, leadership, surroundings)
    loop, alarm = asyncio.get_running_loop(), None

    async def converge() -> None:
        nonlocal alarm
        if mirror.doubt:
            return  # the leadership is about to end
        await scheduler.converge()
        if alarm is not None:
            alarm.cancel()
        alarm = loop.call_at(scheduler.due, news.set) if math.isfinite(scheduler.due) else None

    async with asyncio.TaskGroup() as tasks:
        converging = tasks.create_task(keep_converging(converge, news, rest_seconds=SCHEDULER_REST_SECONDS))
        await mirror.becomes(doubted=True)
        converging.cancel()


@asynccontextmanager
async def _connected(etcd: EtcdConfig) -> AsyncIterator[EtcdStore]:
    """The configured etcd, waited for; without one, the etcd on this machine, started if it is not running."""
    async with AsyncExitStack() as stack:
        if not etcd.endpoints:
            found = await stack.enter_async_context(embedded_etcd(etcd.data_dir, etcd.port))
            log.info(
                "etcd %s at %s, %s", found.version, found.endpoint, "started" if found.started else "found running"
            )
        yield await _first_answer(stack, etcd)


async def _first_answer(stack: AsyncExitStack, etcd: EtcdConfig) -> EtcdStore:
    backoff = Backoff(first=0.5, longest=10.0)
    while True:
        try:
            store = await stack.enter_async_context(EtcdStore.connect(etcd.addresses, access=access_of(etcd)))
            warning = version_warning(await store.server_version())
            if warning:
                log.warning("%s", warning)
            return store
        except StoreUnavailable as error:
            log.warning("%s Trying again.", error)
        await backoff.pause()


def _stop_signal() -> asyncio.Event:
    """Set by the first signal; the second one ends the process at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(sign: signal.Signals) -> None:
        asked.set()
        loop.remove_signal_handler(sign)
        signal.signal(sign, signal.SIG_DFL)  # Python's own handler would raise in the midst of the clean-up

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, ask, sign)
    return asked


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's exit status: 0 when a signal ended it, 1 after an error that is told in one sentence."""
    given = _parser().parse_args(arguments)
    return run_process(lambda: run(_config(given)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.control_plane", description="Run the control plane.")
    parser.add_argument("-c", "--config", type=Path, help="a TOML file; configs/default.toml shows every key")
    parser.add_argument("--host", help="the address to listen on; API keys are required unless it is loopback")
    parser.add_argument("--port", type=int, help="0 lets the system choose")
    for flag, value in (("--with-authentication", "required"), ("--without-authentication", "off")):
        parser.add_argument(flag, dest="authentication", action="store_const", const=value)
    parser.add_argument("--etcd", nargs="+", metavar="HOST:PORT", help="where the fleet's store is")
    return parser


def _config(given: argparse.Namespace) -> Config:
    config = load_config(given.config)
    if given.port is not None and not 0 <= given.port <= 65535:
        raise InvalidConfig(f"--port {given.port} is no port; use 0 to 65535.")
    flags = {"host": given.host, "port": given.port, "authentication": given.authentication}
    asked = {name: value for name, value in flags.items() if value is not None}
    etcd = at_endpoints(config.etcd, given.etcd)
    access_of(etcd)  # a file that cannot be read ends the start
    return config.model_copy(update={"serve": config.serve.model_copy(update=asked), "etcd": etcd})
