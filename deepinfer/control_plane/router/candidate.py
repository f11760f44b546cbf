"""What a choice is made from: values only, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from msgspec import Struct

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


class Seen(Protocol):
    """What a choice looks at: a candidate, or the very connection that it would be made of."""

    @property
    def placement(self) -> str: ...
    @property
    def deployment(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def last_used(self) -> int: ...
    @property
    def load(self) -> EngineLoad: ...
    @property
    def standing(self) -> Standing: ...


S = TypeVar("S", bound=Seen)


class RoutedRequest(Struct, frozen=True):
    """What a choice may depend on besides the candidates."""

    model: str
    tried: frozenset[str] = frozenset()  # placements that already failed this request
    id: bytes = b""
    prompt_tokens: int = 0  # as far as they are known
    tokens: bytes = b""  # their ids, see kv_chain.py; b"": not known
    no_tokens: str = ""  # why not, in words
    salt: str = ""  # of the prompt's KV, the client's own
    text: bytes = b""  # what the prompt is made of, for a guess
    session: str = ""  # what the client says its requests have in common
    answer_tokens: float = 256.0  # about
    streams: bool = False
