"""Linear layers that are faster than torch's and give the same bits, where that can be had."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, threads_for
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import order_sensitive

PROBE_ROWS = (1, 2, 3, 7, 33)


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


@torch.inference_mode()
def has_torchs_bits(outputs: int, inner: int, biased: bool, kernels: Kernels) -> bool:
    """Whether the kernel computes such a layer as torch does."""
    from deepinfer.engine_shim.engines.layer_shard.kernels.exact_linear_kernel import STRIDE

    if inner % STRIDE:
        return False
    random = torch.Generator().manual_seed(0)
    probed = order_sensitive(random, min(outputs, 512), inner)
    bias = order_sensitive(random, probed.shape[0]) if biased else None
    exact = ExactLinear(probed, bias, kernels)
    inputs = [order_sensitive(random, rows, inner) for rows in PROBE_ROWS]
    return all(torch.equal(exact(x), nn.functional.linear(x, probed, bias)) for x in inputs)
