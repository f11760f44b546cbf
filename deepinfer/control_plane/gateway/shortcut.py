"""Past the application, for requests that a connection and an engine can settle between them."""

from __future__ import annotations

from deepinfer.control_plane.access.caller import Caller
from deepinfer.control_plane.gateway.body import own_id, read_headers
from deepinfer.control_plane.gateway.client_connection import ClientConnection
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.exchange import Exchange
from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.known_head import KnownHead
from deepinfer.control_plane.gateway.multipart import is_form
from deepinfer.control_plane.gateway.relay import Relay
from deepinfer.fleet.errors import DeepinferError


class Shortcut:
    """What it does not take, the application gets as if there were no shortcut."""

    def __init__(self, door: FrontDoor, relay: Relay, drain: Drain) -> None:
        self._door = door
        self._relay = relay
        self._drain = drain

    def read(self, headers: list[tuple[bytes, bytes]]) -> KnownHead | None:
        """Of a POST to one of RELAYED_PATHS; Content-Length is not among them. None: not to be taken."""
        try:
            known = KnownHead(headers, self._door.key_shown(headers), read_headers(headers), own_id(headers))
        except DeepinferError:
            return None
        return None if is_form(known.sent.content_type) else known

    def caller(self, head: KnownHead) -> Caller | None:
        """Who asks, if a body is to be awaited."""
        try:
            return None if self._drain.begun else self._door.caller(head.key)
        except DeepinferError:
            return None

    def ask(self, connection: ClientConnection, head: KnownHead, caller: Caller, body: bytes) -> Exchange | None:
        """None: nothing has happened, the application is to serve it."""
        return None if self._drain.begun else self._relay.exchange(connection, head, caller, body)
