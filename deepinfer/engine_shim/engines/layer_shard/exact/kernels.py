"""The compiled kernels. They run on torch's own OpenMP threads, so that no second team competes with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.exact.attention_kernel import ARGUMENTS, define_attention
from deepinfer.engine_shim.engines.layer_shard.exact.linear_kernel import define_linear, scratch_floats
from deepinfer.engine_shim.engines.layer_shard.exact.norm_kernel import define_norm

Kernel = Callable[..., None]  # of addresses and sizes, as its `define_…` says


class CompiledKernels:
    """All kernels, and what must stay alive while they can be called."""

    def __init__(self, openmp: Path) -> None:
        _offer(ctypes.CDLL(str(openmp)), "GOMP_parallel", "omp_get_thread_num")
        _offer(ctypes.CDLL(None), "exp", "expf")  # the C library torch calls too
        module = ir.Module("exact")
        define_linear(module)
        define_norm(module)
        define_attention(module)
        self._engine = _compiled(module)
        self.scratch_floats = scratch_floats
        self.linear = self._function("linear", 8)
        self.norm = self._function("norm", 7)
        self.attention = self._function("attention", ARGUMENTS)

    def _function(self, name: str, arguments: int) -> Kernel:
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(self._engine.get_function_address(name))


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
