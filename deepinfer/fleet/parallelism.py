"""How many devices a replica takes. Pure."""

from __future__ import annotations

import math

from deepinfer.fleet.engine_arguments import by_name
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

_OTHER_WAYS = ("pipeline_parallel_size", "pp", "data_parallel_size", "dp")
"""Arguments of vLLM that multiply its devices and have no field of their own."""


def devices_needed(spec: DeploymentSpec) -> int:
    """When it names none: as many as it wants to be spread over."""
    return (spec.tensor_parallel_size or 1) * _spread_by_arguments(spec)


def tensor_parallel_size(spec: DeploymentSpec) -> int | None:
    """What it says, or what several named devices mean; None leaves it to the engine."""
    named = named_devices(spec)
    if spec.tensor_parallel_size is not None or len(named) < 2:
        return spec.tensor_parallel_size
    return len(named) // _spread_by_arguments(spec)


def named_devices(spec: DeploymentSpec) -> tuple[str, ...]:
    """Their ids, in the order given; none for "auto" and "cpu"."""
    if spec.device in ("auto", "cpu"):
        return ()
    return tuple(map(_id, spec.device.split(",")))


def _id(text: str) -> str:
    """A bare number means a CUDA device."""
    kind, _, number = text.rpartition(":")
    return f"{kind or 'cuda'}:{int(number)}"


def contradiction(spec: DeploymentSpec) -> str | None:
    """Why the devices it names cannot be what it also says of them."""
    named = named_devices(spec)
    if len(set(named)) < len(named):
        return f'device "{spec.device}" names a device twice'
    if len({device.partition(":")[0] for device in named}) > 1:
        return f'device "{spec.device}" names devices of several kinds'
    if not named or (spec.tensor_parallel_size is None and len(named) % _spread_by_arguments(spec) == 0):
        return None
    needed = devices_needed(spec)
    if needed == len(named):
        return None
    return f'device "{spec.device}" names {len(named)}, but its parallel sizes need {needed}; leave one of them out'


def _spread_by_arguments(spec: DeploymentSpec) -> int:
    if spec.engine is not EngineKind.VLLM:
        return 1
    given = by_name(spec.engine_args)
    sizes = (given.get(name) for name in _OTHER_WAYS)
    return math.prod(size for size in sizes if isinstance(size, int) and size > 0)
