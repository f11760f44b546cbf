"""Linear layers that are faster than torch's and give the same bits, where that can be had.

Layers that read the same input (query, key and value; gate and up) are computed by one call: on a small model waking
the threads costs as much as the product. No output changes by that, since each is a dot product of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.exact.machine import Kernels, kernels_for, order_sensitive, threads_for

PROBE_ROWS = (1, 2, 3, 7, 33)
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class ExactLinear(nn.Module):
    """`nn.Linear` on the kernel. The weight is the same tensor, not a copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self._address = weight.data_ptr()
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        inner, outputs = self.in_features, self.out_features
        rows = x.numel() // inner
        if rows == 0:
            return nn.functional.linear(x, self.weight, self.bias)
        x = x.contiguous()
        out = torch.empty((*x.shape[:-1], outputs), dtype=torch.bfloat16)
        threads = threads_for(rows * outputs * inner)
        scratch = torch.empty(self.kernels.scratch_floats(rows, inner, threads))
        addresses = (x.data_ptr(), self._address, out.data_ptr(), scratch.data_ptr())
        self.kernels.linear(*addresses, rows, outputs, inner, threads)
        return out if self.bias is None else out + self.bias

    __call__ = forward  # nobody hooks it, and on a small model nn.Module's own call costs a tenth of the product


class _Joined:
    """Several exact layers with the same input, as one: the first piece asked for computes all."""

    def __init__(self, layers: Sequence[ExactLinear]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight = torch.cat(tuple(layer.weight for layer in layers))
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self._whole = ExactLinear(weight, torch.cat(biases) if biases else None, layers[0].kernels)
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

    __call__ = forward  # as above


def make_linears_exact(model: nn.Module) -> int:
    """Replace every linear layer the kernel computes bit for bit as torch does; answers how many."""
    verdicts: dict[tuple[int, int, bool], bool] = {}
    replaced = 0
    for parent, name, linear in list(_linears(model)):
        available = kernels_for(linear.weight.dtype, linear.weight.device)
        if available is None:
            continue
        shape = (*linear.weight.shape, linear.bias is not None)
        if shape not in verdicts:
            verdicts[shape] = _same_bits(linear, available)
        if verdicts[shape]:
            setattr(parent, name, ExactLinear(linear.weight.data, _data(linear.bias), available))
            replaced += 1
    for parent in list(model.modules()):
        for names in SAME_INPUT:
            _join(parent, names)
    return replaced


def _join(parent: nn.Module, names: Sequence[str]) -> None:
    layers = [layer for name in names if isinstance(layer := getattr(parent, name, None), ExactLinear)]
    if len(layers) < len(names) or len({layer.bias is None for layer in layers}) > 1:
        return
    joined = _Joined(layers)
    for number, name in enumerate(names):
        setattr(parent, name, JoinedPiece(joined, number))


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child


def _data(parameter: nn.Parameter | None) -> Tensor | None:
    return None if parameter is None else parameter.data


def _same_bits(linear: nn.Linear, kernels: Kernels) -> bool:
    from deepinfer.engine_shim.engines.layer_shard.exact.linear_kernel import STRIDE

    weight = linear.weight
    if weight.shape[1] % STRIDE:
        return False
    random = torch.Generator().manual_seed(0)
    probed = order_sensitive(random, min(weight.shape[0], 512), weight.shape[1])
    bias = None if linear.bias is None else order_sensitive(random, probed.shape[0])
    exact = ExactLinear(probed, bias, kernels)
    inputs = [order_sensitive(random, rows, weight.shape[1]) for rows in PROBE_ROWS]
    return all(torch.equal(exact(x), nn.functional.linear(x, probed, bias)) for x in inputs)
