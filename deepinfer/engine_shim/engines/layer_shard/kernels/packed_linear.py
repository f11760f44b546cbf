"""Linear layers with bits of their own, the same for a row alone and in any batch, and embeddings tied to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, threads_for
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import close, order_sensitive, rows_are_their_own

PROBE_ROWS, PROBE_OUTPUTS = (1, 2, 3, 12, 13, 33), 200


class PackedLinear(nn.Module):
    """`nn.Linear` on the kernel, which holds the weight packed, in place of the original.

    `gated`: the outputs are a gate's and then as many of another layer, of which SiLU(gate) * other comes out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels, gated: bool = False) -> None:
        super().__init__()
        group = kernels.group
        outputs, self._inner = weight.shape
        self._outputs, self._gated = outputs // 2 if gated else outputs, gated
        self.packed = nn.Parameter(_packed(_grouped(weight, group, gated)), requires_grad=False)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(_grouped(bias, group, gated).flatten().float(), requires_grad=False)
        self._groups = self.packed.shape[0]
        self._padded = self._groups * (group // 2 if gated else group)
        self._addresses = (self.packed.data_ptr(), 0 if self.bias is None else self.bias.data_ptr())
        self._linear = kernels.packed_linear

    def forward(self, x: Tensor) -> Tensor:
        inner = self._inner
        x = x.contiguous()
        out = torch.empty((*x.shape[:-1], self._padded), dtype=torch.bfloat16)
        rows = x.numel() // inner
        threads = threads_for(rows * self._groups * inner * 32)
        sizes = (rows, self._groups, inner // 2, self._gated, threads)
        self._linear(x.data_ptr(), *self._addresses, out.data_ptr(), *sizes)
        return out if self._padded == self._outputs else out[..., : self._outputs]

    __call__ = forward  # nobody hooks it, and on a small model nn.Module's own call costs a tenth of the product


class PackedEmbedding(nn.Module):
    """The embedding tied to a head, gathered out of the head's packed weight."""

    def __init__(self, head: PackedLinear) -> None:
        super().__init__()
        self.packed = head.packed
        self._pairs = self.packed.view(torch.int32).squeeze(-1)  # [outputs / group, inner / 2, group]

    def forward(self, ids: Tensor) -> Tensor:
        group = self._pairs.shape[2]
        return self._pairs[ids // group, :, ids % group].view(torch.bfloat16)


def _grouped(weight: Tensor, group: int, gated: bool) -> Tensor:
    """The rows of a weight, or the numbers of a bias, as [groups, group, …], with zeros after the last.

    A gated group is half of the gate's and half of the other's.
    """
    parts = weight.chunk(2) if gated else (weight,)
    size = group // len(parts)
    groups = -(-parts[0].shape[0] // size)
    padded = weight.new_zeros(len(parts), groups * size, *weight.shape[1:])
    for part, source in zip(padded, parts, strict=True):
        part[: source.shape[0]] = source
    return padded.view(len(parts), groups, size, *weight.shape[1:]).transpose(0, 1).flatten(1, 2)


def _packed(grouped: Tensor) -> Tensor:
    """[groups, group, inner] as the kernel wants it: [groups, inner / 2, group, 2]."""
    return grouped.view(*grouped.shape[:2], -1, 2).transpose(1, 2).contiguous()


def packed_linear(linear: nn.Linear, kernels: Kernels) -> PackedLinear:
    return PackedLinear(linear.weight.data, None if linear.bias is None else linear.bias.data, kernels)


@torch.inference_mode()
def packs_well(inner: int, kernels: Kernels) -> bool:
    """Whether the kernel computes layers of this width as it should on this machine."""
    if inner % 2:
        return False
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(PROBE_OUTPUTS, inner, generator=random).bfloat16()
    bias = torch.randn(PROBE_OUTPUTS, generator=random).bfloat16()
    x = torch.randn(max(PROBE_ROWS), inner, generator=random).bfloat16()
    gate, up = nn.functional.linear(x.float(), weight.float(), bias.float()).chunk(2, dim=-1)
    uneven = PackedLinear(order_sensitive(random, PROBE_OUTPUTS, inner), bias, kernels)
    return (
        close(PackedLinear(weight, bias, kernels)(x), torch.cat((gate, up), dim=-1))
        and close(PackedLinear(weight, bias, kernels, gated=True)(x), nn.functional.silu(gate) * up)
        and rows_are_their_own(uneven, order_sensitive(random, max(PROBE_ROWS), inner), PROBE_ROWS)
    )
