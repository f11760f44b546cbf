"""Linear layers that are faster than torch's and give the same bits, where that can be had.

`Bf16Kernel` reproduces one particular torch code path (bf16 on AVX2). Whether this machine's torch takes that path is
not guessed from versions: every distinct layer shape is tried on numbers whose sum depends strongly on the order of
addition, and the layer keeps torch's own product unless all bits agree.

Layers that read the same input (query, key and value; gate and up) are computed by one call: on a small model waking
the threads costs as much as the product. No output changes by that, since each is a dot product of its own.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

PROBE_ROWS = (1, 2, 3, 7, 33)
MACS_WORTH_WAKING_THREADS = 1_000_000
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Kernel(Protocol):
    """What `Bf16Kernel` offers; its module is imported only where it can be used."""

    def product(self, *addresses_and_sizes: int) -> None: ...

    def scratch_floats(self, inner: int, threads: int) -> int: ...


class ExactLinear(nn.Module):
    """`nn.Linear` on the kernel. The weight is the same tensor, not a copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Kernel) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self._kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows == 0:
            return nn.functional.linear(x, self.weight, self.bias)
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self.out_features))
        worth_sharing = rows * self.weight.numel() >= MACS_WORTH_WAKING_THREADS
        threads = torch.get_num_threads() if worth_sharing else 1
        scratch = torch.empty(self._kernel.scratch_floats(self.in_features, threads))
        self._kernel.product(
            x.data_ptr(),
            self.weight.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            rows,
            self.out_features,
            self.in_features,
            threads,
        )
        return out if self.bias is None else out + self.bias


class _Joined:
    """Several exact layers with the same input, as one: the first piece asked for computes all."""

    def __init__(self, layers: Sequence[ExactLinear], kernel: Kernel) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight = torch.cat(tuple(layer.weight for layer in layers))
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self._whole = ExactLinear(weight, torch.cat(biases) if biases else None, kernel)
        self._input: Tensor | None = None
        self._pieces: tuple[Tensor, ...] = ()

    def weight(self, number: int) -> Tensor:
        return torch.split(self._whole.weight, self._sizes)[number]

    def piece(self, number: int, x: Tensor) -> Tensor:
        if self._input is not x:
            self._input, self._pieces = x, torch.split(self._whole(x), self._sizes, dim=-1)
        piece = self._pieces[number]
        if number == len(self._sizes) - 1:
            self._input, self._pieces = None, ()
        return piece


class JoinedPiece(nn.Module):
    """One of the joined layers, under the name the model calls it by."""

    def __init__(self, joined: _Joined, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(joined.weight(number), requires_grad=False)  # a view: nothing is held twice
        self._joined, self._number = joined, number

    def forward(self, x: Tensor) -> Tensor:
        return self._joined.piece(self._number, x)


def make_linears_exact(model: nn.Module) -> int:
    """Replace every linear layer the kernel computes bit for bit as torch does; answers how many."""
    kernel = _kernel()
    if kernel is None:
        return 0
    verdicts: dict[tuple[int, int, bool], bool] = {}
    replaced = 0
    for parent, name, linear in list(_linears(model)):
        shape = (*linear.weight.shape, linear.bias is not None)
        if shape not in verdicts:
            verdicts[shape] = _same_bits(linear, kernel)
        if verdicts[shape]:
            setattr(parent, name, ExactLinear(linear.weight.data, _data(linear.bias), kernel))
            replaced += 1
    for parent in list(model.modules()):
        for names in SAME_INPUT:
            _join(parent, names, kernel)
    return replaced


def _join(parent: nn.Module, names: Sequence[str], kernel: Kernel) -> None:
    layers = [layer for name in names if isinstance(layer := getattr(parent, name, None), ExactLinear)]
    if len(layers) < len(names) or len({layer.bias is None for layer in layers}) > 1:
        return
    joined = _Joined(layers, kernel)
    for number, name in enumerate(names):
        setattr(parent, name, JoinedPiece(joined, number))


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child


def _data(parameter: nn.Parameter | None) -> Tensor | None:
    return None if parameter is None else parameter.data


@cache
def _kernel() -> Kernel | None:
    """The compiled kernel, or None where torch's bf16 is not the AVX2 path or llvmlite is not installed."""
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not openmp:
        return None
    try:
        from deepinfer.engine_shim.engines.layer_shard.bf16_kernel import Bf16Kernel
    except ImportError:
        return None
    return cast(Kernel, Bf16Kernel(openmp[0]))


def _same_bits(linear: nn.Linear, kernel: Kernel) -> bool:
    from deepinfer.engine_shim.engines.layer_shard.bf16_kernel import STRIDE

    weight = linear.weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or weight.shape[1] % STRIDE:
        return False
    random = torch.Generator().manual_seed(0)
    probed = _order_sensitive(random, min(weight.shape[0], 512), weight.shape[1])
    bias = None if linear.bias is None else _order_sensitive(random, probed.shape[0])
    exact = ExactLinear(probed, bias, kernel)
    inputs = [_order_sensitive(random, rows, weight.shape[1]) for rows in PROBE_ROWS]
    return all(torch.equal(exact(x), nn.functional.linear(x, probed, bias)) for x in inputs)


def _order_sensitive(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers of very different sizes: sums of their products differ in bf16 when added in another order."""
    sizes = torch.randint(-8, 9, shape, generator=random)
    return (torch.randn(shape, generator=random) * 2.0**sizes).bfloat16()
