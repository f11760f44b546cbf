"""A replica as the router sees a connection to it, with no engine behind it."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.control_plane.router.health import Standing
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.fleet.spec import RoutingPolicy


@dataclass
class RoutedReplica:
    """Of a deployment whose contents are known."""

    placement: str
    outlook: Outlook
    policy: RoutingPolicy = RoutingPolicy.KV
    deployment: str = "chat"
    last_used: int = 0
    standing: Standing = Standing.TRUSTED
    others: tuple[str, ...] = ()
    wants_contents: bool = True

    @property
    def in_flight(self) -> int:
        return self.outlook.in_flight

    @property
    def load(self) -> EngineLoad:
        return self.outlook.load
