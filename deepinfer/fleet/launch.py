"""What an agent tells the shim it starts: one file, so that no secret and no long list stands in a process list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from deepinfer.fleet.resources import EngineKind, Resource

EX_CONFIG = 78
"""Exit status (sysexits.h) of a shim whose engine refused its spec: starting it again will not help."""


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
    engine_args: dict[str, Any] = Field(default_factory=dict)
    log: Path | None = None  # where its output goes, so that progress which is only printed can be read
    socket: Path  # a unix socket the agent talks to; known before the process exists, so adoption needs no record
    host: str = "127.0.0.1"  # the gateway's side; the port is chosen by the kernel and told by GetInfo
