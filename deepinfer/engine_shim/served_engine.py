"""An engine as the shim serves it: an ASGI application, and what it tells about itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest

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
    generate: Callable[[GenerateRequest], AsyncGenerator[GenerateDelta, None]]
    kv: KvContents
    load: Callable[[], EngineLoad]
    work_done: Callable[[], int]  # grows with every token computed, of prompts and of answers
    broken: Callable[[], Awaitable[str]]  # returns when it can compute no more, with the reason; may wait for ever
    close: Callable[[], Awaitable[None]]
    names: Callable[[], tuple[str, ...]] | None = None  # adapters, served besides the launch's names; may change
    cpu_seconds: Callable[[], float] | None = None  # used so far by the processes that compute, if they are its own
    http_key: bytes = b""  # what its calls must carry, as a bearer token
    http_endpoint: str = ""  # host:port where it takes calls itself, past the shim; then `app` is for nobody
    listen: Callable[[Callable[[], None]], None] | None = None  # has it called when load or names change by themselves
    idle: Callable[[], Awaitable[None]] | None = None  # returns when none runs of the calls that come past the shim
