"""Layers that read the same input (query, key and value; gate and up) computed by one call.

On a small model waking the threads costs as much as the product. No output changes by it, for each is a sum of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Joined:
    """Linear layers with the same input, as one: the first piece asked for computes all."""

    def __init__(self, whole: nn.Module, sizes: Sequence[int]) -> None:
        self.whole, self._sizes = whole, list(sizes)
        self._input: Tensor | None = None
        self._pieces: tuple[Tensor, ...] = ()

    def piece(self, number: int, x: Tensor) -> Tensor:
        if self._input is not x:
            self._input, self._pieces = x, torch.split_with_sizes(self.whole(x), self._sizes, -1)
        piece = self._pieces[number]
        if number == len(self._sizes) - 1:
            self._input, self._pieces = None, ()
        return piece


class JoinedPiece(nn.Module):
    """One of the joined layers, under the name the model calls it by."""

    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self.whole = joined.whole  # the same in every piece: held once
        self._joined, self._number = joined, number

    def forward(self, x: Tensor) -> Tensor:
        return self._joined.piece(self._number, x)

    __call__ = forward  # nobody hooks it, and on a small model nn.Module's own call costs a tenth of the product
