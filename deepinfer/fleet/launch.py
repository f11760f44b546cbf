"""What an agent tells the shim it starts: one file, so that no secret and no long list stands in a process list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from deepinfer.fleet.resource import Resource
from deepinfer.fleet.spec import EngineKind

EX_CONFIG = 78
"""Exit status (sysexits.h) of a shim whose engine refused its spec: starting it again will not help."""


FAILURE_LINE = "engine failed: "
"""How the last line begins that a shim prints when its engine failed; the reason follows."""


class ContainerServer(Resource):
    """An OpenAI server in a container of this node, seen from the node."""

    endpoint: str  # host:port of its HTTP/1.1 server
    api_key: str = Field(default="", repr=False)  # what its requests must carry, as a bearer token; "": nothing
    kv_events: Path | None = None  # folder of its KV events' unix sockets; None: it tells none
    pid: int | None = None  # of its first process, as this node counts; None: its CPU time and memory are not looked at


class PipelineLaunch(Resource):
    """What a process needs to be part of a replica in stages."""

    secret: str = Field(repr=False)  # in hex: what its processes prove to each other to know
    host: str = "127.0.0.1"  # where it listens for its head
    is_ready_at_once: bool  # it hosts a stage, or waits for one; else it is ready once its replica serves


class EngineLaunch(Resource):
    """Everything a shim needs to start its engine."""

    placement: str
    epoch: int
    engine: EngineKind
    served_names: tuple[str, ...]  # the first is the one answers carry
    model_path: Path | None = None  # None only for engines that need no weights (sim without a tokenizer)
    device: str
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int | None = None
    stall_seconds: float = 10.0  # with work in hand and none done; 0: such an engine is left alone
    device_locks: tuple[Path, ...] = ()  # of simulated devices: held by the engine as long as it lives
    engine_args: dict[str, Any] = Field(default_factory=dict)
    log: Path | None = None  # what this process and its children print; loading progress is read from it
    socket: Path  # a unix socket the agent talks to; known before the process exists, so adoption needs no record
    host: str = "127.0.0.1"  # the gateway's side; GetInfo tells the port
    port_note: Path | None = None  # where the port is noted for the next shim of this epoch; None: nowhere
    pipeline: PipelineLaunch | None = None  # None: it computes the whole model
    container: ContainerServer | None = None  # then the shim computes nothing and speaks for this one
