"""Which kernels serve this machine, and with what promise.

Where torch's bf16 is the AVX2 path, the exact ones: they have torch's very bits, so that an answer is what transformers
says, alone and in a batch. Where torch and its oneDNN use AVX-512, a row's bits depend on how many others are computed
with it; there the packed ones have bits of their own, close to torch's, and no row's depend on another.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear_kernel import Shape

WORTH_WAKING_THREADS = 1_000_000  # multiply-adds


class Kernels(Protocol):
    """What `compiled.py` offers; it is imported only where it can be used."""

    exact: bool  # they have torch's bits, and `linear`; else their own, and `packed_linear`
    group: int  # outputs that are packed together

    def linear(self, *addresses_and_sizes: int) -> None: ...

    def packed_linear(self, *addresses_and_sizes: int) -> None: ...

    def scratch_floats(self, rows: int, inner: int, threads: int) -> int: ...

    def norm(self, *addresses_and_sizes: int) -> None: ...

    def rotate(self, *addresses_and_sizes: int) -> None: ...

    def attention(self, *addresses_and_sizes: int) -> None: ...


def kernels_for(dtype: torch.dtype, device: torch.device | str) -> Kernels | None:
    """The kernels, where they could serve such numbers at all; only then are they compiled, which takes a second."""
    return kernels_of_this_machine() if dtype == torch.bfloat16 and torch.device(device).type == "cpu" else None


@cache
def kernels_of_this_machine() -> Kernels | None:
    """None where torch's bf16 is neither path or llvmlite is not installed."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() != "x86_64" or not capability.startswith(("AVX2", "AVX512", "AMX")):
        return None
    try:
        return compiled_kernels(packed=capability != "AVX2")
    except ImportError:
        return None


def compiled_kernels(packed: bool, shape: Shape | None = None) -> Kernels | None:
    """The exact or the packed ones, of `shape` or of what suits this CPU best."""
    from deepinfer.engine_shim.engines.layer_shard.kernels.compiled import CompiledKernels, best_shape

    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return CompiledKernels(openmp[0], (shape or best_shape()) if packed else None) if openmp else None


def threads_for(work: int) -> int:
    """How many threads a kernel should use for so many multiply-adds."""
    return torch.get_num_threads() if work >= WORTH_WAKING_THREADS else 1


def bits_of(number: float) -> int:
    """A number as a kernel takes it: the bits of the nearest fp32."""
    return torch.tensor(number, dtype=torch.float32).view(torch.int32).item()  # type: ignore[return-value]
