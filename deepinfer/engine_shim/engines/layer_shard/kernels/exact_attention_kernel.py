"""Attention of one new token over its sequence's keys and values, with the bits of torch's flash attention in bf16.

For a single query torch's kernel (FlashAttentionKernel.cpp) takes 512 keys at a time and has MKL compute the products
of a matrix with a vector. On CPUs that MKL does not know that is a loop over single numbers, a tenth as fast as the one
here, which adds in the same order:
* query with key: four running sums, number by number; at the end (1 + 3) + (0 + 2);
* softmax: `exponential` over registers of 8 (two sums for pairs of registers, one for a single register left), the
  last few keys one by one through the C library's `exp`; the weights are then rounded to bf16;
* weights with values: four keys at a time as (1 + 3) + (0 + 2), the last few one by one, backwards.
A product of two bf16 numbers is exact in fp32, so that fused and separate multiply-add agree there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.attention_kernel import LONGEST_HEAD, SIZE_STEP
from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    F32,
    HALF,
    I16,
    I64,
    LANES,
    PTR,
    at,
    begin_function,
    down_to,
    exponential,
    fma,
    integer,
    intrinsic,
    lanes_added,
    least,
    load,
    loop,
    part,
    room,
    same,
    spread,
    store_bf16,
    through_bf16,
    widened,
)

BLOCK = 512  # keys torch takes at a time
GROUP = 4  # keys, and numbers of a key, that MKL adds up together


@dataclass(frozen=True)
class _Memory:
    """What `attended` works on: bf16 `keys` and `values` [key, size], fp32 `query`, `weights` [key], `sums` [size]."""

    keys: Any
    values: Any
    query: Any
    weights: Any
    sums: Any
    size: Any


def define_exact_attended(module: ir.Module) -> None:
    """attended(query, keys, values, out, keys_seen, size, scale): one head of one sequence."""
    function, b = begin_function(module, "attended", [PTR, PTR, PTR, PTR, I64, I64, F32])
    query, keys, values, out, keys_seen, size, scale = function.args
    wide_query, sums, weights = (room(b, count) for count in (LONGEST_HEAD, LONGEST_HEAD, BLOCK))
    with loop(b, integer(0), size, LANES) as turn:
        b.store(widened(b, at(b, query, turn.index, I16)), at(b, wide_query, turn.index), align=4)
        b.store(same(0.0), at(b, sums, turn.index), align=4)
    with loop(b, integer(0), keys_seen, BLOCK, [ir.Constant(F32, -math.inf), ir.Constant(F32, 0.0)]) as block:
        here = least(b, integer(BLOCK), b.sub(keys_seen, block.index))
        start = b.mul(block.index, size)
        memory = _Memory(at(b, keys, start, I16), at(b, values, start, I16), wide_query, weights, sums, size)
        before, total = block.values
        largest = _larger(b, before, _scores(b, memory, here, scale))
        added = _softmax(b, weights, here, largest)
        rescale = intrinsic(b, "exp", F32, b.fsub(before, largest))
        _add_values(b, memory, here, rescale)
        block.following = [largest, fma(b, rescale, total, added)]
    share = spread(b, b.fdiv(ir.Constant(F32, 1.0), block.results[1]))
    with loop(b, integer(0), size, LANES) as turn:
        store_bf16(b, b.fmul(load(b, at(b, sums, turn.index)), share), at(b, out, turn.index, I16))
    b.ret_void()


def _larger(b: ir.IRBuilder, left: Any, right: Any) -> Any:
    return b.select(b.fcmp_ordered(">", left, right), left, right)


def _scores(b: ir.IRBuilder, memory: _Memory, count: Any, scale: Any) -> Any:
    """Query with each key, scaled, to `weights`; the largest."""
    whole = down_to(b, count, GROUP)
    largest: Any = ir.Constant(F32, -math.inf)
    for start, stop, together in ((integer(0), whole, GROUP), (whole, count, 1)):
        with loop(b, start, stop, together, [largest]) as turn:
            rows = [at(b, memory.keys, b.mul(b.add(turn.index, integer(i)), memory.size), I16) for i in range(together)]
            with loop(b, integer(0), memory.size, LANES, [same(0.0, HALF)] * together) as inner:
                asked = load(b, at(b, memory.query, inner.index))
                inner.following = [
                    _four_by_four(b, widened(b, at(b, row, inner.index, I16)), asked, total)
                    for row, total in zip(rows, inner.values, strict=True)
                ]
            best = turn.values[0]
            for number, total in enumerate(inner.results):
                score = b.fmul(lanes_added(b, total), scale)
                b.store(score, at(b, memory.weights, b.add(turn.index, integer(number))))
                best = _larger(b, best, score)
            turn.following = [best]
        largest = turn.results[0]
    return largest


def _four_by_four(b: ir.IRBuilder, left: Any, right: Any, total: Any) -> Any:
    for first in (0, GROUP):
        total = fma(b, part(b, left, first, GROUP), part(b, right, first, GROUP), total)
    return total


def _softmax(b: ir.IRBuilder, weights: Any, count: Any, largest: Any) -> Any:
    """exp(weight - largest), rounded, to `weights`; the sum of what was not rounded."""

    def register(index: Any, total: Any) -> Any:
        place = at(b, weights, index)
        power = exponential(b, b.fsub(load(b, place), spread(b, largest)))
        b.store(through_bf16(b, power), place, align=4)
        return b.fadd(total, power)

    pairs, registers = down_to(b, count, 2 * LANES), down_to(b, count, LANES)
    with loop(b, integer(0), pairs, 2 * LANES, [same(0.0)] * 2) as turn:
        turn.following = [register(b.add(turn.index, integer(i * LANES)), turn.values[i]) for i in range(2)]
    with loop(b, pairs, registers, LANES, [same(0.0)]) as single:
        single.following = [register(single.index, single.values[0])]
    total = b.fadd(b.fadd(single.results[0], turn.results[0]), turn.results[1])
    with loop(b, registers, count, 1, [lanes_added(b, total)]) as last:
        place = at(b, weights, last.index)
        difference = b.fpext(b.fsub(load(b, place, F32), largest), ir.DoubleType())
        power = b.fptrunc(intrinsic(b, "exp", ir.DoubleType(), difference), F32)
        b.store(through_bf16(b, power), place, align=4)
        last.following = [b.fadd(last.values[0], power)]
    return last.results[0]


def _add_values(b: ir.IRBuilder, memory: _Memory, count: Any, rescale: Any) -> None:
    """sums = sums * rescale + weights with values, 16 numbers of a head at a time."""
    whole = down_to(b, count, GROUP)
    with loop(b, integer(0), memory.size, SIZE_STEP) as column:
        places = [b.add(column.index, integer(i * LANES)) for i in range(SIZE_STEP // LANES)]
        earlier = [b.fmul(load(b, at(b, memory.sums, place)), spread(b, rescale)) for place in places]

        def weighted(key: Any, sums: Sequence[Any] | None) -> list[Any]:
            weight = spread(b, load(b, at(b, memory.weights, key), F32))
            row = at(b, memory.values, b.mul(key, memory.size), I16)
            values = [widened(b, at(b, row, place, I16)) for place in places]
            if sums is None:
                return [b.fmul(value, weight) for value in values]
            return [fma(b, value, weight, total) for value, total in zip(values, sums, strict=True)]

        with loop(b, integer(0), whole, GROUP, earlier) as turn:
            keys = [b.add(turn.index, integer(i)) for i in range(GROUP)]
            even = weighted(keys[2], weighted(keys[0], None))
            odd = weighted(keys[3], weighted(keys[1], None))
            turn.following = [b.fadd(total, b.fadd(o, e)) for total, o, e in zip(turn.values, odd, even, strict=True)]
        with loop(b, whole, count, 1, turn.results) as last:
            backwards = b.sub(b.sub(b.add(whole, count), integer(1)), last.index)
            last.following = weighted(backwards, last.values)
        for place, total in zip(places, last.results, strict=True):
            b.store(total, at(b, memory.sums, place), align=4)
