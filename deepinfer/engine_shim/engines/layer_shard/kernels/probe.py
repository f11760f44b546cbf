"""How to find out what a kernel computes: numbers to ask with, and what counts as the right answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ROUNDINGS = 2.0**-6  # two or three of bf16, in a row: what an exact answer may be wrong by
SUM_ROUNDINGS = 2.0**-7  # the same, of the largest sum


def order_sensitive(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers of very different sizes: sums of their products differ in bf16 when added in another order."""
    sizes = torch.randint(-8, 9, shape, generator=random)
    return (torch.randn(shape, generator=random) * 2.0**sizes).bfloat16()


def close(answer: Tensor, reference: Tensor) -> bool:
    """Whether `answer` is `reference`, computed in fp32, but for bf16's roundings."""
    allowed = ROUNDINGS * reference.abs() + SUM_ROUNDINGS * reference.abs().mean()
    return bool(((answer.float() - reference).abs() <= allowed).all())


def rows_are_their_own(layer: Callable[[Tensor], Tensor], x: Tensor, counts: Iterable[int]) -> bool:
    """Whether the first rows of `x` [row, width] get the same bits whoever else is there."""
    whole = layer(x)
    return all(torch.equal(layer(x[:count]), whole[:count]) for count in counts)
