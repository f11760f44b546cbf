"""Keys and values of the running sequences: one slab of memory a sequence, grown by copying into a bigger one.

A slab is contiguous, because attention over a contiguous run is over twice as fast on a CPU as over gathered pages. All
layers share one tensor, so that a step takes all of a sequence's views in a few calls. Sliding-window layers keep every
token too: simpler, at the price of memory beyond the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KvShape:
    """What one token's keys and values measure on this stage."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: str

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


class KvSlab:
    """One sequence's keys and values: [layer, key or value, head, token, head_size]."""

    def __init__(self, shape: KvShape, capacity: int) -> None:
        self._shape = shape
        self._tensor = self._allocated(capacity)

    @property
    def capacity(self) -> int:
        return self._tensor.shape[3]

    @property
    def address(self) -> int:
        return self._tensor.data_ptr()

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` tokens into a slab of `capacity`."""
        bigger = self._allocated(capacity)
        bigger[:, :, :, :used] = self._tensor[:, :, :, :used]
        self._tensor = bigger

    def written(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Per layer, where the tokens `start:stop` go: [2, head, token, head_size]."""
        return self._tensor[:, :, :, start:stop].unbind(0)

    def held(self, stop: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer, the keys and the values of the first `stop` tokens: [1, head, token, head_size] each."""
        views = self._tensor[:, :, None, :, :stop].flatten(0, 1).unbind(0)
        return list(zip(views[0::2], views[1::2], strict=True))

    def _allocated(self, capacity: int) -> Tensor:
        s = self._shape
        return torch.empty(s.layers, 2, s.heads, capacity, s.head_size, dtype=s.dtype, device=s.device)
