"""A real gateway over a real HTTP socket, told by the test what the store says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.access.web_pages import WebPages
from deepinfer.control_plane.gateway.access_log import AccessLog
from deepinfer.control_plane.gateway.admission import Admission, QueueLimits
from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.server import Listening, listening
from deepinfer.control_plane.gateway.shortcut import Shortcut
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.fleet.config import ServeConfig
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import RoutingPolicy
from tests.fleet_values import deployment, placement, status

NO_HEADERS: Mapping[str, str] = {}

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.spans import Spans


@dataclass
class RunningGateway:
    """`url` is its address, `http` a client of it."""

    replicas: Replicas
    url: str
    http: httpx.AsyncClient

    admission: Admission
    drain: Drain

    async def ask(self, *, extra: Mapping[str, str] = NO_HEADERS, timeout: float = 60, **fields: Any) -> httpx.Response:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=extra, timeout=timeout)

    def waiting(self, model: str) -> int:
        """Requests that wait in the gateway."""
        return self.admission.waiting().get(model, 0)


def management() -> FastAPI:
    """Stands for the management API: another ASGI application behind the gateway."""
    app = FastAPI()

    @app.post("/v1/deployments")
    async def deploy() -> dict[str, str]:
        return {"seen": "by the management API"}

    return app


def fleet_of(*endpoints: str | None, epoch: int = 1, routing: RoutingPolicy = RoutingPolicy.KV) -> Snapshot:
    """ "chat" with one replica at each endpoint."""
    replicas = range(len(endpoints))
    chat = deployment(replicas=len(endpoints))
    return Snapshot(
        deployments=(chat.model_copy(update={"spec": chat.spec.model_copy(update={"routing": routing})}),),
        placements=tuple(placement(replica=n, epoch=epoch) for n in replicas),
        statuses=tuple(status(f"chat-aaaaa-{n}", epoch, endpoint=endpoints[n]) for n in replicas),
    )


@asynccontextmanager
async def running_gateway(
    fleet: Snapshot | None = None,
    limits: QueueLimits | None = None,
    access_log: AccessLog | None = None,
    spans: Spans | None = None,
    keys: KeyRing | None = None,
    pages: WebPages | None = None,
    config: ServeConfig | None = None,
) -> AsyncIterator[RunningGateway]:
    """Without `keys` none are required."""
    async with AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(Replicas())
        config = config or ServeConfig()
        domains = frozenset(config.allowed_media_domains)
        measuring = Metrics(replicas, access_log, spans)
        parts = Parts(
            replicas, measuring, Admission(replicas, limits), media_domains=domains, continues=config.continue_streams
        )
        gateway = Gateway(parts, management())
        door = FrontDoor(gateway, keys, pages)
        how = Listening(parts.drain, config, shortcut=Shortcut(door, gateway.relay, parts.drain))
        port = await stack.enter_async_context(listening(door, "127.0.0.1", 0, how))
        url = f"http://127.0.0.1:{port}"
        many = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=many) as http:
            if fleet is not None:
                replicas.update(fleet)
            yield RunningGateway(replicas, url, http, parts.admission, parts.drain)


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until the router sees it so. It follows engines in other processes, and nothing tells when it has."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
