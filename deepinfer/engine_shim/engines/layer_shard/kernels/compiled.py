"""The compiled kernels. They run on torch's own OpenMP threads, so that no second team competes with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.attention_kernel import ARGUMENTS, define_attention
from deepinfer.engine_shim.engines.layer_shard.kernels.exact_attention_kernel import define_exact_attended
from deepinfer.engine_shim.engines.layer_shard.kernels.exact_linear_kernel import define_linear, scratch_floats
from deepinfer.engine_shim.engines.layer_shard.kernels.norm_kernel import define_norm
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_attention_kernel import define_packed_attended
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear_kernel import ARGUMENTS as PACKED_ARGUMENTS
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear_kernel import (
    AVX2,
    AVX512,
    AVX512_BF16,
    Shape,
    define_packed_linear,
)
from deepinfer.engine_shim.engines.layer_shard.kernels.rotation_kernel import ARGUMENTS as ROTATION_ARGUMENTS
from deepinfer.engine_shim.engines.layer_shard.kernels.rotation_kernel import define_rotation

Kernel = Callable[..., None]  # of addresses and sizes, as its `define_…` says


class CompiledKernels:
    """The exact kernels, or with `packing` the packed ones; and what must stay alive while they can be called."""

    def __init__(self, openmp: Path, packing: Shape | None) -> None:
        _offer(ctypes.CDLL(str(openmp)), "GOMP_parallel", "omp_get_thread_num")
        _offer(ctypes.CDLL(None), "exp", "expf")  # the C library torch calls too
        self.exact = packing is None
        self.group = 0 if packing is None else packing.group
        self._engine = _compiled(_module(packing))
        self.scratch_floats = scratch_floats
        self.norm = self._function("norm", 7)
        self.attention = self._function("attention", ARGUMENTS)
        self.rotate = self._function("rotate", ROTATION_ARGUMENTS)
        if packing is None:
            self.linear = self._function("linear", 8)
        else:
            self.packed_linear = self._function("packed_linear", PACKED_ARGUMENTS)

    def _function(self, name: str, arguments: int) -> Kernel:
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(self._engine.get_function_address(name))


def best_shape() -> Shape:
    """Of the packed kernel, on this CPU."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512bw"):
        return AVX512_BF16 if features.get("avx512bf16") else AVX512
    return AVX2


def _module(packing: Shape | None) -> ir.Module:
    module = ir.Module("kernels")
    if packing is None:
        define_linear(module)
        define_exact_attended(module)
    else:
        define_packed_attended(module, packing.lanes)
        define_packed_linear(module, packing)
    define_norm(module)
    define_attention(module)
    define_rotation(module)
    return module


def _offer(library: ctypes.CDLL, *names: str) -> None:
    for name in names:
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


def _compiled(module: ir.Module) -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
