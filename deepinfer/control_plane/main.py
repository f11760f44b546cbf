"""`serve`: gateway, router, scheduler and management API in one process. Its parts, and how it ends.

The HTTP server is up first and goes down last: requests that run are finished without the store. Everything else may
wait for etcd, and does. SIGTERM and SIGINT end it; a second one does not wait for running requests. With several
gateways this is the main process, and the only one that may lead; the others begin once it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.access.openness import check_openness
from deepinfer.control_plane.front import gateway_parts, keep_up, process_name
from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.front_door import front_door
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.server import Listening, Sharing, listening
from deepinfer.control_plane.gateway.shortcut import Shortcut
from deepinfer.control_plane.gateway.siblings import Siblings
from deepinfer.control_plane.gateway_process import Orders
from deepinfer.control_plane.leading import keep_leading
from deepinfer.control_plane.management.app import management_app
from deepinfer.control_plane.other_gateways import OtherGateways
from deepinfer.control_plane.routing import GARBAGE_THRESHOLDS
from deepinfer.control_plane.scheduler.event_log import EventLog
from deepinfer.control_plane.scheduler.scheduler import Surroundings
from deepinfer.control_plane.stop_signal import run_until, stop_signal
from deepinfer.control_plane.store_connection import Connection, fleet_of, own_or_named_store
from deepinfer.fleet.admin_token import offered
from deepinfer.fleet.api_key import new_secret
from deepinfer.fleet.config import MOST_GATEWAYS, Config, InvalidConfig, at_endpoints, load_config
from deepinfer.fleet.entry import run_process
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.store_access import access_of

log = logging.getLogger(__name__)


async def run(config: Config) -> None:
    """Until a signal ends it."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    serve = config.serve
    check_openness(serve)
    asked_to_stop = stop_signal()
    connection = Connection()
    siblings = Siblings.of_this_process(serve.gateways)
    token = new_secret()
    keys = KeyRing(token)
    async with gateway_parts(serve, siblings) as parts:
        gateway = Gateway(parts, management_app(connection, parts.replicas.answering))
        door = front_door(gateway, keys, serve)
        sharing = Sharing.SHARES if serve.gateways > 1 else Sharing.ALONE
        how = Listening(parts.drain, serve, sharing, Shortcut(door, gateway.relay, parts.drain))
        async with (
            siblings.answering(parts.metrics.page, parts.admission.router.decisions.told),
            OtherGateways(siblings) as others,
            listening(door, serve.host, serve.port, how) as port,
        ):

            def ready() -> None:
                print(f"deepinfer serve: ready at {_url(serve.host, port)}", flush=True)
                others.start(Orders(config=_with_serve(config, port=port), number=0, folder=siblings.folder))

            with offered(token, port) if serve.requires_keys else nullcontext():
                await run_until(asked_to_stop, _run_fleet(config, connection, (parts, keys), ready), others.end)


async def _run_fleet(
    config: Config, connection: Connection, front: tuple[Parts, KeyRing], ready: Callable[[], None]
) -> None:
    """Route by what the store says, and lead the fleet if nobody else does. Never returns."""
    parts, keys = front
    replicas = parts.replicas
    async with own_or_named_store(config.etcd) as store:
        log.info("this is fleet %s", (await fleet_of(store)).id)
        async with Mirror.following(store) as mirror, asyncio.TaskGroup() as tasks:
            connection.mirror = mirror
            surroundings = Surroundings(replicas.answering, config.serve.node_grace_seconds, EventLog(store))
            news, known = mirror.listener(), asyncio.Event()
            replicas.when_turned = news.set
            tasks.create_task(keep_up(mirror, parts, keys, known))
            tasks.create_task(keep_leading(mirror, process_name(), news, surroundings))
            await known.wait()
            ready()


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
    parser.add_argument("--gateways", type=int, help="processes that share the port; more than one for more cores")
    parser.add_argument("--etcd", nargs="+", metavar="HOST:PORT", help="where the fleet's store is")
    return parser


def _config(given: argparse.Namespace) -> Config:
    config = load_config(given.config)
    if given.port is not None and not 0 <= given.port <= 65535:
        raise InvalidConfig(f"--port {given.port} is no port; use 0 to 65535.")
    if given.gateways is not None and not 1 <= given.gateways <= MOST_GATEWAYS:
        raise InvalidConfig(f"--gateways {given.gateways} cannot be; use 1 to {MOST_GATEWAYS}.")
    told = {name: getattr(given, name) for name in ("host", "port", "authentication", "gateways")}
    asked = {name: value for name, value in told.items() if value is not None}
    etcd = at_endpoints(config.etcd, given.etcd)
    access_of(etcd)  # a file that cannot be read ends the start
    return _with_serve(config, **asked).model_copy(update={"etcd": etcd})


def _with_serve(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"serve": config.serve.model_copy(update=values)})
