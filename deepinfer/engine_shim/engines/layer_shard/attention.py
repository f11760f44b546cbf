"""Attention for a batch of unequal sequences packed into one row, plugged into stock transformers models.

transformers calls the function registered under `NAME` in every attention layer. Because it knows no mask builder of
that name, it makes no mask, and because `past_key_values` is not passed, it keeps no cache: both are ours.

Every sequence gets the very call that transformers' own sdpa attention would make for it alone, or one with the same
bits: that is what makes batched answers equal lone ones. So:
* a first chunk is `is_causal`; a later chunk of a long prompt needs a mask, whose sums may differ in the last bit;
* single tokens go to `DecodeAttention` where it has torch's bits;
* elsewhere grouped heads use `enable_gqa` as transformers does; only bf16 decoding over more than 1,024 keys on a CPU
  folds each group into the query axis instead. That is five times faster there, and differs in a last bit now and then
  from transformers' answer, but not from the same request's answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import AttentionInterface

from deepinfer.engine_shim.engines.layer_shard.kernels.decode_attention import DecodeAttention
from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab

NAME = "deepinfer_ragged"
FOLD_ABOVE = 1024  # keys


@dataclass(frozen=True)
class Segment:
    """The tokens of one sequence in this step: `count` new ones after `start` already held."""

    slab: KvSlab
    start: int
    count: int
    again: bool = False  # one of several tokens of this sequence, that an earlier step computed one by one


class RaggedBatch:
    """A step's segments with their memory views, taken once for all layers. Single tokens must come first.

    Of these, first the ones of a sequence each, then those that are computed `again`: they see what others of the step
    only write, so all is written before any attention. Then the kernel attends, as it did when they came one by one.
    """

    def __init__(self, segments: Sequence[Segment], decode: DecodeAttention | None = None) -> None:
        singles = sum(segment.count == 1 for segment in segments)
        if any(segment.count == 1 for segment in segments[singles:]):
            raise ValueError("segments of a single token must come first")
        self._decode = decode
        alone = sum(segment.count == 1 and not segment.again for segment in segments[:singles])
        self._by_kernel = alone if decode else 0
        if decode:
            self._held = decode.held([(s.slab, s.start + 1) for s in segments[:alone]])
            self._held_again = decode.held([(s.slab, s.start + 1) for s in segments[alone:singles]])
        segments = segments[self._by_kernel :]
        self._singles = singles - self._by_kernel
        self._counts = [segment.count for segment in segments]
        self._starts = [segment.start for segment in segments]
        ends = [segment.start + segment.count for segment in segments]
        written = [segment.slab.written(segment.start, end) for segment, end in zip(segments, ends, strict=True)]
        held = [segment.slab.held(end) for segment, end in zip(segments, ends, strict=True)]
        self._layers = [
            _LayerViews(list(targets), list(views))
            for targets, views in zip(zip(*written, strict=True), zip(*held, strict=True), strict=True)
        ]

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        """The attention output of all packed tokens, [token, head, head_size]; keys and values are kept."""
        outputs = []
        if self._decode and self._by_kernel:
            outputs.append(self._decode(layer, (query, key, value), self._held, how.scale, how.window))
        if self._counts:
            rest = slice(self._by_kernel, None)
            fresh = (query[:, :, rest], key[:, :, rest], value[:, :, rest])
            outputs += self._all_written_first(layer, fresh, how)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _all_written_first(self, layer: int, fresh: tuple[Tensor, Tensor, Tensor], how: _How) -> list[Tensor]:
        (query, key, value), views = fresh, self._layers[layer]
        torch._foreach_copy_(views.targets, torch.split(torch.stack((key[0], value[0])), self._counts, dim=2))
        outputs: list[Tensor] = []
        if self._singles and self._decode:
            outputs.append(self._decode(layer, fresh, self._held_again, how.scale, how.window))
        elif self._singles:
            outputs += self._decoded(query[:, :, : self._singles], views, how)
        queries = torch.split(query[:, :, self._singles :], self._counts[self._singles :], dim=2)
        for number, chunk in enumerate(queries, self._singles):
            keys, values = views.held[number]
            plain = self._starts[number] == 0 and not (how.window and keys.shape[2] > how.window)
            attended = (_whole if plain else _masked)(chunk, keys, values, how)
            outputs.append(attended[0].transpose(0, 1))
        return outputs

    def _decoded(self, query: Tensor, views: _LayerViews, how: _How) -> list[Tensor]:
        """One query token a sequence: it may see every key, or the window's."""
        heads, size = query.shape[1], query.shape[3]
        groups = views.held[0][0].shape[1]
        queries = query[0].transpose(0, 1).reshape(-1, 1, groups, heads // groups, size).unbind(0)
        outputs = []
        for number, folded in enumerate(queries):
            keys, values = views.held[number]
            if how.window and keys.shape[2] > how.window:
                keys, values = keys[:, :, -how.window :], values[:, :, -how.window :]
            if how.fold and keys.shape[2] > FOLD_ABOVE:
                attended = attend(folded, keys, values, scale=how.scale)
            else:
                attended = attend(folded.reshape(1, heads, 1, size), keys, values, scale=how.scale, enable_gqa=True)
            outputs.append(attended.reshape(1, heads, size))
        return outputs


@dataclass(frozen=True)
class _LayerViews:
    targets: list[Tensor]
    held: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _How:
    scale: float | None
    window: int | None
    fold: bool


def _whole(query: Tensor, keys: Tensor, values: Tensor, how: _How) -> Tensor:
    return attend(query, keys, values, scale=how.scale, is_causal=True, enable_gqa=True)


def _masked(query: Tensor, keys: Tensor, values: Tensor, how: _How) -> Tensor:
    """Tokens that see all earlier ones, or the window's: torch has no flag for that, so a mask says it."""
    count, total = query.shape[2], keys.shape[2]
    at = torch.arange(total - count, total, device=query.device)[:, None]
    seen = torch.arange(total, device=query.device)[None]
    mask = seen <= at
    if how.window:
        mask &= at - seen < how.window
    times = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(times, dim=1) for x in (keys, values))
    return attend(query, keys, values, attn_mask=mask[None, None], scale=how.scale)


def ragged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    ragged: RaggedBatch,
    sliding_window: int | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer, in the shape of its `AttentionInterface`."""
    fold = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    layer = cast(int, module.layer_idx)
    return ragged.attention(layer, query, key, value, _How(scaling, sliding_window, fold))[None], None


AttentionInterface.register(NAME, ragged_attention)
