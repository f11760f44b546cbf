"""What this machine can run, and how to find out whether two ways of adding are the same."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

WORTH_WAKING_THREADS = 1_000_000  # multiply-adds


class Kernels(Protocol):
    """What `kernels.py` offers; it is imported only where it can be used."""

    def linear(self, *addresses_and_sizes: int) -> None: ...

    def scratch_floats(self, rows: int, inner: int, threads: int) -> int: ...

    def norm(self, *addresses_and_sizes: int) -> None: ...

    def attention(self, *addresses_and_sizes: int) -> None: ...


def kernels_for(dtype: torch.dtype, device: torch.device | str) -> Kernels | None:
    """The kernels, where they could serve such numbers at all; only then are they compiled, which takes a second."""
    return _kernels() if dtype == torch.bfloat16 and torch.device(device).type == "cpu" else None


@cache
def _kernels() -> Kernels | None:
    """None where torch's bf16 is not the AVX2 path or llvmlite is not installed."""
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not openmp:
        return None
    try:
        from deepinfer.engine_shim.engines.layer_shard.exact.kernels import CompiledKernels
    except ImportError:
        return None
    return CompiledKernels(openmp[0])


def threads_for(work: int) -> int:
    """How many threads a kernel should use for so many multiply-adds."""
    return torch.get_num_threads() if work >= WORTH_WAKING_THREADS else 1


def bits_of(number: float) -> int:
    """A number as a kernel takes it: the bits of the nearest fp32."""
    return torch.tensor(number, dtype=torch.float32).view(torch.int32).item()  # type: ignore[return-value]


def order_sensitive(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers of very different sizes: sums of their products differ in bf16 when added in another order."""
    sizes = torch.randint(-8, 9, shape, generator=random)
    return (torch.randn(shape, generator=random) * 2.0**sizes).bfloat16()
