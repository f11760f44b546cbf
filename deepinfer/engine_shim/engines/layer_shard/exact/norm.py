"""RMSNorm in one pass instead of eight operations, with the same bits, where that can be had.

Every family names its class …RMSNorm and gives it a weight and `variance_epsilon`; what such a class really computes is
found out by asking it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.exact.machine import (
    Kernels,
    bits_of,
    kernels_for,
    order_sensitive,
    threads_for,
)

PROBE_ROWS = (1, 2, 33)


class ExactNorm(nn.Module):
    """An RMSNorm on the kernel. The weight is the same tensor, not a copy."""

    def __init__(self, weight: Tensor, epsilon: float, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._address, self._width = weight.data_ptr(), weight.numel()
        self._epsilon = bits_of(epsilon)
        self._norm = kernels.norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        count = x.numel()
        addresses = (x.data_ptr(), self._address, out.data_ptr())
        self._norm(*addresses, count // self._width, self._width, self._epsilon, threads_for(count))
        return out

    __call__ = forward  # nobody hooks it, and nn.Module's own call costs as much as a short row


def make_norms_exact(model: nn.Module) -> int:
    """Replace every RMSNorm the kernel computes bit for bit as the model does; answers how many."""
    replaced = 0
    for parent, name, norm in list(_norms(model)):
        available = kernels_for(norm.weight.dtype, norm.weight.device)
        if available is None or not _fits(norm.weight.numel()):
            continue
        exact = ExactNorm(norm.weight.data, norm.variance_epsilon, available)
        if _same_bits(exact, norm):
            setattr(parent, name, exact)
            replaced += 1
    return replaced


def _norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if (
                type(child).__name__.endswith("RMSNorm")
                and isinstance(getattr(child, "weight", None), Tensor)
                and isinstance(getattr(child, "variance_epsilon", None), float)
            ):
                yield parent, name, child


def _fits(width: int) -> bool:
    from deepinfer.engine_shim.engines.layer_shard.exact.norm_kernel import LONGEST, STRIDE

    return width % STRIDE == 0 and width <= LONGEST


@torch.inference_mode()
def _same_bits(exact: ExactNorm, norm: Any) -> bool:
    random = torch.Generator().manual_seed(0)
    inputs = [order_sensitive(random, 1, rows, norm.weight.numel()) for rows in PROBE_ROWS]
    return all(torch.equal(exact(x), norm(x)) for x in inputs)
