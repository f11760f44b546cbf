"""The attention of a step's single tokens, all sequences in one call, with torch's bits where exactness is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, bits_of, kernels_for, threads_for
from deepinfer.engine_shim.engines.layer_shard.kernels.probe import close, order_sensitive
from deepinfer.engine_shim.engines.layer_shard.kv import KvShape, KvSlab

PROBE_LENGTHS = (1, 2, 3, 7, 8, 17, 31, 64, 100, 511, 513, 1031)


@dataclass(frozen=True)
class Held:
    """Where the sequences of a step have their keys and values, for all layers."""

    table: Tensor  # [sequence, 3]: slab's address and capacity, length with the new token
    keys: int


class DecodeAttention:
    """For a model with these heads and this shape of keys and values."""

    def __init__(self, heads: int, shape: KvShape, kernels: Kernels) -> None:
        self.heads, self.shape = heads, shape
        self._attention = kernels.attention

    def held(self, sequences: Sequence[tuple[KvSlab, int]]) -> Held:
        """Of slabs and lengths with the new token."""
        rows = [(slab.address, slab.capacity, length) for slab, length in sequences]
        return Held(torch.tensor(rows, dtype=torch.int64), sum(length for _, length in sequences))

    def __call__(
        self, layer: int, fresh: tuple[Tensor, Tensor, Tensor], held: Held, scale: float | None, window: int | None
    ) -> Tensor:
        """The outputs [sequence, head, head_size] of the sequences in `held`; their keys and values are kept.

        `fresh` is query, key and value, [1, head, token, head_size] each, whose first tokens are the sequences'; the
        numbers of a head lie side by side.
        """
        shape, (query, key, value) = self.shape, fresh
        count = held.table.shape[0]
        out = torch.empty((count, self.heads, shape.head_size), dtype=shape.dtype)
        self._attention(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            held.table.data_ptr(),
            count,
            layer,
            shape.heads,
            self.heads // shape.heads,
            shape.head_size,
            _scale_bits(scale or shape.head_size**-0.5),
            window or 0,
            *(stride for tensor in fresh for stride in (tensor.stride(2), tensor.stride(1))),
            threads_for(2 * held.keys * self.heads * shape.head_size),
        )
        return out


_scale_bits = cache(bits_of)


def decode_attention(heads: int, shape: KvShape) -> DecodeAttention | None:
    """The kernel for such a model, or None where it does not fit or its bits should be torch's and are not."""
    available = kernels_for(shape.dtype, shape.device)
    if available is None or not _fits(shape):
        return None
    small = replace(shape, layers=2)
    probed = DecodeAttention(heads, small, available)
    random = torch.Generator().manual_seed(0)
    same = all(_same_answer(probed, length, random, available.exact) for length in PROBE_LENGTHS)
    return DecodeAttention(heads, shape, available) if same else None


def _fits(shape: KvShape) -> bool:
    from deepinfer.engine_shim.engines.layer_shard.kernels.attention_kernel import LONGEST_HEAD, SIZE_STEP

    return shape.head_size % SIZE_STEP == 0 and shape.head_size <= LONGEST_HEAD


@torch.inference_mode()
def _same_answer(probed: DecodeAttention, length: int, random: torch.Generator, exactly: bool) -> bool:
    shape = probed.shape
    slab = KvSlab(shape, length + 1)
    query = order_sensitive(random, 1, probed.heads, 1, shape.head_size)
    keys, values = (torch.randn(1, shape.heads, length, shape.head_size, generator=random).bfloat16() for _ in range(2))
    slab.written(0, length)[1].copy_(torch.cat((keys, values)))
    fresh = (query, keys[:, :, -1:], values[:, :, -1:])
    out = probed(1, fresh, probed.held([(slab, length)]), None, None).reshape(query.shape)
    if exactly:
        return torch.equal(out, attend(query, keys, values, enable_gqa=True))
    return close(out, attend(query.float(), keys.float(), values.float(), enable_gqa=True))
