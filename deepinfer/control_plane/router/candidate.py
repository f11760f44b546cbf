"""What a choice is made from: values only, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from deepinfer.control_plane.router.health import Standing
from deepinfer.engine_shim.token_engine import EngineLoad


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that is ready for a model, as the router sees it now."""

    placement: str
    epoch: int
    node: str
    endpoint: str
    in_flight: int = 0  # requests this gateway has there; exact, where `load` is as old as the engine's last message
    last_used: int = 0  # number of the gateway's request it was last chosen for: lets equal replicas take turns
    load: EngineLoad = field(default_factory=EngineLoad)
    standing: Standing = Standing.TRUSTED
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """What a choice may depend on besides the candidates."""

    model: str
    tried: frozenset[str] = frozenset()  # placements that already failed this request
