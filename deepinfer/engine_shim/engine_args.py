"""What `engine_args` may say, for each kind of engine. Light to import: the management API checks with it too."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.spec import EngineKind


class _Args(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_A = TypeVar("_A", bound=_Args)


class SimArgs(_Args):
    """Of the simulated engine."""

    prefill_tokens_per_second: float = Field(default=8000.0, gt=0, allow_inf_nan=False)
    seconds_per_output_token: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_num_seqs: int = Field(default=64, ge=1, le=100_000)
    block_size: int = Field(default=16, ge=1, le=65_536)
    kv_blocks: int = Field(default=4096, ge=2, le=100_000_000)
    load_seconds: float = Field(default=0.0, ge=0, le=86_400)
    core_process: bool = False  # compute in a process of its own, as vLLM does
    memory_bytes: int = Field(default=0, ge=0, le=1 << 40)  # really held, by the core process
    transfer_tokens_per_second: float = Field(default=100_000.0, gt=0, allow_inf_nan=False)  # of KV from another one
    # How long blocks are kept for who is to fetch them: less than it takes to call an engine that waits stalled.
    transfer_timeout_seconds: float = Field(default=8.0, gt=0, le=86_400)


class LayerShardArgs(_Args):
    """Of the layer-shard engine."""

    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=2048, ge=1, le=1_048_576)
    threads: int | None = Field(default=None, ge=1, le=4096)


_KINDS: dict[EngineKind, type[SimArgs | LayerShardArgs]] = {
    EngineKind.SIM: SimArgs,
    EngineKind.LAYER_SHARD: LayerShardArgs,
}


def check_engine_args(kind: EngineKind, args: Mapping[str, Any]) -> None:
    """`InvalidRequest` that names the first wrong one. vLLM's are vLLM's to check."""
    if kind in _KINDS:
        _parsed(_KINDS[kind], kind, args)


def sim_args(args: Mapping[str, Any]) -> SimArgs:
    return _parsed(SimArgs, EngineKind.SIM, args)


def layer_shard_args(args: Mapping[str, Any]) -> LayerShardArgs:
    return _parsed(LayerShardArgs, EngineKind.LAYER_SHARD, args)


def _parsed(model: type[_A], kind: EngineKind, args: Mapping[str, Any]) -> _A:
    unknown = next((name for name in args if name not in model.model_fields), None)
    if unknown is not None:
        raise InvalidRequest(_unknown(kind, unknown, list(model.model_fields)), param=f"engine_args.{unknown}")
    try:
        return model.model_validate(dict(args))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"engine_args.{name}: {first['msg']}.", param=f"engine_args.{name}") from error


def _unknown(kind: EngineKind, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"The {kind} engine has no argument {name}.{meant} It knows: {', '.join(known)}."
