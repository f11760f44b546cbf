"""The gateway: one plain ASGI function in front of everything. No middleware; what carries a model goes to an engine.

*     what is below MANAGEMENT_PATHS                          the management API
*     any path with ?model=NAME                               relayed to an engine (relay.py), as it is
*     /v1/models, /v1/models/NAME, /health, /ready, /metrics  answered here (GET)
*     /v1/routing/ID                                          answered here: why a request went to its replica (GET)
POST  everything else: its body names a model                 relayed to an engine
*     RELAYED_PATHS, /v1/responses/ID                         refused here: 405, 404
*     the rest: /docs and what is nowhere, lifespan included  the management API

No list of engines' endpoints is kept: what a path means is the engine's to say. A request goes to one replica, also one
that changes something there. Engines have what changes them switched off unless their deployment switches it on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from deepinfer.control_plane.access.caller import Caller, caller_of
from deepinfer.control_plane.gateway.asgi import App, Message, Receive, Reply, Scope, Send
from deepinfer.control_plane.gateway.body import model_in_query, request_id
from deepinfer.control_plane.gateway.error_reply import error_reply
from deepinfer.control_plane.gateway.openai_models import model_list, one_model
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.relay import Relay
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.openai_errors import DecisionNotKnown, GatewayEnds, MethodNotAllowed, ResponseNotFound
from deepinfer.fleet.errors import DeepinferError, NoReadyReplica

MANAGEMENT_PATHS = (
    "/v1/deployments",
    "/v1/replicas",
    "/v1/aliases",
    "/v1/nodes",
    "/v1/rebalance",
    "/v1/events",
    "/v1/fleet",
    "/v1/api_keys",
    "/v1/routing",
    "/api/",
)
"""What lies below these is never an engine's."""
ROUTING_PATH = "/v1/routing/"
Page = Callable[[Caller], Reply | Awaitable[Reply]]
WHILE_IT_ENDS = frozenset(("/health", "/ready", "/metrics"))
"""What a gateway still answers that drains."""


class Gateway:
    """`management` is the ASGI application that gets what is not the gateway's."""

    def __init__(self, parts: Parts, management: App) -> None:
        self._replicas = replicas = parts.replicas
        self._metrics = metrics = parts.metrics
        metrics.ejected_now, replicas.when_ejected = replicas.ejected, metrics.ejected
        self._drain = parts.drain
        self._decisions, self._siblings = parts.admission.router.decisions, parts.siblings
        self._management = management
        self.relay = Relay(parts)
        self._pages: dict[str, Page] = {
            "/health": lambda _: Reply(200, b'{"status":"ok"}'),
            "/ready": lambda _: self._ready(),
            "/metrics": lambda _: parts.siblings.page(metrics.page()),
            "/v1/models": lambda caller: model_list(replicas, caller),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._management(scope, receive, send)
        elif self._drain.begun and scope["path"] not in WHILE_IT_ENDS:
            await self._drain.refusal(scope["path"]).send(send)
        elif self._is_relayed(scope):
            await self.relay(scope, receive, send)
        elif (page := self._page(scope["path"])) is not None:
            await (await _answer(page, scope)).send(send)
        elif scope["path"] in RELAYED_PATHS:
            await _not_allowed(scope["method"], "POST").send(send)
        elif scope["path"].startswith("/v1/responses/"):  # it names no model, so no engine
            await error_reply(ResponseNotFound()).send(send)
        else:
            await self._manage(scope, receive, send)

    async def _manage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Who changed the fleet stands in the access log too."""
        our_id = request_id(scope)
        with self._metrics.measure("management", our_id, scope) as measured:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    measured.status = message["status"]
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", our_id)]
                else:
                    measured.streamed(message.get("body", b""))
                await send(message)

            await self._management(scope, receive, seen)

    def _is_relayed(self, scope: Scope) -> bool:
        path = scope["path"]
        if path.startswith(MANAGEMENT_PATHS):
            return False
        if model_in_query(scope["query_string"]) is not None:
            return True
        return scope["method"] == "POST" and self._page(path) is None

    def _page(self, path: str) -> Page | None:
        if path.startswith("/v1/models/"):
            return lambda caller: one_model(self._replicas, caller, path.removeprefix("/v1/models/"))
        if path.startswith(ROUTING_PATH):
            return lambda caller: self._decision(path.removeprefix(ROUTING_PATH))
        return self._pages.get(path)

    async def _decision(self, request: str) -> Reply:
        told = self._decisions.told(request) or await self._siblings.decision(request)
        if not told:
            raise DecisionNotKnown(f"No request {request[:128]} is remembered; the newest 1,024 of each gateway are.")
        return Reply(200, told)

    def _ready(self) -> Reply:
        """Whether a load balancer should send requests here; a model that is not ready is no reason not to."""
        if self._drain.begun:
            raise GatewayEnds
        if not self._replicas.has_view:
            raise NoReadyReplica("The gateway has not read what is deployed yet; is etcd reachable?")
        return Reply(200, b'{"status":"ready"}')


async def _answer(page: Page, scope: Scope) -> Reply:
    if scope["method"] not in ("GET", "HEAD"):
        return _not_allowed(scope["method"], "GET, HEAD")
    try:
        reply = page(caller_of(scope))
        return reply if isinstance(reply, Reply) else await reply
    except DeepinferError as error:
        return error_reply(error)


def _not_allowed(method: str, allowed: str) -> Reply:
    return error_reply(MethodNotAllowed(f"{method} is not possible here; use {allowed}.", allowed))
