"""An engine as the shim serves it: an ASGI application, and what it tells about itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """What `loading.py` gives, whatever computes."""

    info: Callable[[], EngineInfo]  # what it holds may change while it serves
    app: AsgiApp
    generator: TextGenerator | None  # of Generate; an engine with an application of its own may have none
    kv: KvContents
    load: Callable[[], EngineLoad]
    close: Callable[[], Awaitable[None]]
    names: Callable[[], tuple[str, ...]] | None = None  # adapters, served besides the launch's names; may change
