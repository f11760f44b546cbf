"""What a placement means to its shim, whatever runs the engine. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepinfer.agent.engine_folders import port_note
from deepinfer.agent.engine_log import log_path
from deepinfer.fleet.launch import EngineLaunch, PipelineLaunch
from deepinfer.fleet.parallelism import tensor_parallel_size
from deepinfer.fleet.pipeline import deployment_served
from deepinfer.fleet.resources import Placement


def launch_of(
    placement: Placement,
    model: Path | None,
    *,
    socket: Path,
    folder: Path,
    stall_seconds: float,
    pipeline: PipelineLaunch | None = None,
) -> EngineLaunch:
    """In the placement's `folder`, with the defaults of what only some launchers set."""
    spec = placement.spec
    return EngineLaunch(
        placement=placement.id,
        epoch=placement.epoch,
        engine=spec.engine,
        served_names=tuple(dict.fromkeys((deployment_served(placement.deployment), spec.model))),
        model_path=model,
        device=_kind(placement.devices),
        dtype=spec.dtype,
        quantization=spec.quantization,
        max_model_len=spec.max_model_len,
        gpu_memory_utilization=spec.gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size(spec),
        stall_seconds=stall_seconds,
        engine_args=spec.engine_args,
        log=log_path(folder),
        socket=socket,
        port_note=port_note(folder),
        pipeline=pipeline,
    )


def _kind(devices: Sequence[str]) -> str:
    """Simulated devices are files: what holds one computes on the cpu."""
    kinds = (device.partition(":")[0] for device in devices)
    return next((kind for kind in kinds if kind not in ("cpu", "sim")), "cpu")
