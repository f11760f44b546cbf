"""An MLP with a gate, down(SiLU(gate(x)) * up(x)), in two calls of the packed kernel.

Families have gate and up as two layers or as one, gate first. What a class really computes is found out by asking it.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels
from deepinfer.engine_shim.engines.layer_shard.kernels.packed_linear import PackedLinear, packed_linear, packs_well
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import close

GATE_AND_UP = (("gate_proj", "up_proj"), ("gate_up_proj",))
DOWN = "down_proj"
PROBE_ROWS = 5


class GatedMlp(nn.Module):
    """Takes and gives [..., token, width]."""

    def __init__(self, gate_and_up: list[nn.Linear], down: nn.Linear, kernels: Kernels) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.data for layer in gate_and_up])
        biases = [layer.bias.data for layer in gate_and_up if layer.bias is not None]
        self.gate_and_up = PackedLinear(weight, torch.cat(biases) if biases else None, kernels, gated=True)
        self.down = packed_linear(down, kernels)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate_and_up(x))

    __call__ = forward  # nobody hooks it


def use_gated_mlps(model: nn.Module, kernels: Kernels) -> int:
    """Replace every MLP of that kind; answers how many."""
    verdicts: dict[object, bool] = {}
    replaced = 0
    for parent in list(model.modules()):
        for name, mlp in list(parent.named_children()):
            layers = _layers(mlp)
            if layers is None:
                continue
            gated = GatedMlp(*layers, kernels)
            kind = (type(mlp), gated.gate_and_up.packed.shape, gated.down.packed.shape)
            if kind not in verdicts:
                widths = [layer.in_features for layer in (layers[0][0], layers[1])]
                verdicts[kind] = all(packs_well(width, kernels) for width in widths) and _same_answer(gated, mlp)
            if verdicts[kind]:
                setattr(parent, name, gated)
                replaced += 1
    return replaced


def _layers(mlp: nn.Module) -> tuple[list[nn.Linear], nn.Linear] | None:
    """Those that make gate and up, and the one down, where the MLP has just these."""
    linears = {name: layer for name, layer in mlp.named_children() if isinstance(layer, nn.Linear)}
    for names in GATE_AND_UP:
        if set(linears) == {*names, DOWN}:
            gate_and_up = [linears[name] for name in names]
            if len({layer.bias is None for layer in gate_and_up}) == 1:
                return gate_and_up, linears[DOWN]
    return None


@torch.inference_mode()
def _same_answer(gated: GatedMlp, mlp: nn.Module) -> bool:
    """As the model's own says in fp32."""
    exactly = deepcopy(mlp).float()
    width = next(layer.in_features for layer in mlp.modules() if isinstance(layer, nn.Linear))
    x = torch.randn(1, PROBE_ROWS, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    return close(gated(x), exactly(x.float()))
