"""Which of a model's linear layers the kernels compute, of either kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.exact_linear import ExactLinear, has_torchs_bits
from deepinfer.engine_shim.engines.layer_shard.kernels.joined import Joined, JoinedPiece
from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear import PackedLinear, packs_well

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class _Kind:
    """`serves(outputs, inner, bias)`: whether the kernel is right for such a layer; `make`: a layer of it."""

    serves: Callable[[int, int, bool], bool]
    make: Callable[[Tensor, Tensor | None], nn.Module]


def use_linears(model: nn.Module, kernels: Kernels) -> int:
    """Replace every linear layer that the kernels compute as they should; answers how many."""
    kind = _kind(kernels)
    replaced = 0
    for parent in list(model.modules()):
        for names in SAME_INPUT:
            replaced += _join(parent, names, kind)
    for parent, name, linear in list(_linears(model)):
        if _serves(kind, linear):
            setattr(parent, name, kind.make(linear.weight.data, _bias_of([linear])))
            replaced += 1
    return replaced


def _kind(kernels: Kernels) -> _Kind:
    if kernels.exact:
        return _Kind(
            cache(lambda outputs, inner, bias: has_torchs_bits(outputs, inner, bias, kernels)),
            lambda weight, bias: ExactLinear(weight, bias, kernels),
        )
    by_width = cache(lambda inner: packs_well(inner, kernels))
    return _Kind(lambda outputs, inner, bias: by_width(inner), lambda weight, bias: PackedLinear(weight, bias, kernels))


def _serves(kind: _Kind, linear: nn.Linear) -> bool:
    of_ours = linear.weight.dtype == torch.bfloat16 and linear.weight.device.type == "cpu"
    outputs, inner = linear.weight.shape
    return of_ours and kind.serves(outputs, inner, linear.bias is not None)


def _join(parent: nn.Module, names: Sequence[str], kind: _Kind) -> int:
    layers = [layer for name in names if isinstance(layer := getattr(parent, name, None), nn.Linear)]
    if len(layers) < len(names) or len({layer.bias is None for layer in layers}) > 1:
        return 0
    if not all(_serves(kind, layer) for layer in layers):
        return 0
    whole = kind.make(torch.cat([layer.weight.data for layer in layers]), _bias_of(layers))
    joined = Joined(whole, [layer.out_features for layer in layers])
    for number, name in enumerate(names):
        setattr(parent, name, JoinedPiece(joined, number))
    return len(layers)


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child


def _bias_of(layers: Sequence[nn.Linear]) -> Tensor | None:
    biases: list[Tensor] = [layer.bias.data for layer in layers if layer.bias is not None]
    return torch.cat(biases) if biases else None
