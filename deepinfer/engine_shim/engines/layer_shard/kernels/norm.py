"""RMSNorm in one pass instead of eight operations; with the same bits, where exactness is promised.

Every family names its class …RMSNorm and gives it a weight and `variance_epsilon`; what such a class really computes is
found out by asking it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, bits_of, threads_for
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import close, order_sensitive

PROBE_ROWS = (1, 2, 33)


class FusedNorm(nn.Module):
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


def use_norms(model: nn.Module, kernels: Kernels) -> int:
    """Replace every RMSNorm the kernel computes as the model does; answers how many."""
    replaced = 0
    for parent, name, norm in list(_norms(model)):
        if not _fits(norm.weight):
            continue
        fused = FusedNorm(norm.weight.data, norm.variance_epsilon, kernels)
        if _same_answer(fused, norm, kernels.exact):
            setattr(parent, name, fused)
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


def _fits(weight: Tensor) -> bool:
    from deepinfer.engine_shim.engines.layer_shard.kernels.norm_kernel import LONGEST, STRIDE

    of_ours = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return of_ours and weight.numel() % STRIDE == 0 and weight.numel() <= LONGEST


@torch.inference_mode()
def _same_answer(fused: FusedNorm, norm: Any, exactly: bool) -> bool:
    random = torch.Generator().manual_seed(0)
    inputs = [order_sensitive(random, 1, rows, norm.weight.numel()) for rows in PROBE_ROWS]
    if exactly:
        return all(torch.equal(fused(x), norm(x)) for x in inputs)
    return all(close(fused(x), norm(x).float()) for x in inputs)
