"""Attention of one new token over its sequence's keys and values, in an order of our own, in whole registers.

Like flash attention it takes a block of keys at a time and rescales what it has when a larger score comes. The weights
stay fp32. Nothing depends on other sequences or on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.attention_kernel import LONGEST_HEAD
from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    F32,
    I16,
    I64,
    PTR,
    at,
    begin_function,
    down_to,
    exponential,
    fma,
    integer,
    lane,
    lanes_added,
    least,
    load,
    loop,
    room,
    same,
    spread,
    store_bf16,
    widened,
)

BLOCK = 512  # keys
LEAST = ir.Constant(F32, -math.inf)
TOGETHER = 4  # keys whose scores, registers of a head whose sums are in the making at once


@dataclass(frozen=True)
class _Head:
    """What is computed on: bf16 `keys` and `values` [key, size], fp32 `query`, `weights` [key] and `sums` [size]."""

    keys: Any
    values: Any
    query: Any
    weights: Any
    sums: Any
    size: Any
    kind: ir.VectorType

    def register(self, b: ir.IRBuilder, rows: Any, row: Any, place: Any) -> Any:
        """Of the keys or the values, as fp32."""
        return widened(b, at(b, rows, b.add(b.mul(row, self.size), place), I16), self.kind.count)


def define_packed_attended(module: ir.Module, lanes: int) -> None:
    """attended(query, keys, values, out, keys_seen, size, scale): one head of one sequence."""
    function, b = begin_function(module, "attended", [PTR, PTR, PTR, PTR, I64, I64, F32])
    query, keys, values, out, keys_seen, size, scale = function.args
    kind = ir.VectorType(F32, lanes)
    wide_query, sums, weights = (room(b, count) for count in (LONGEST_HEAD, LONGEST_HEAD, BLOCK))
    with loop(b, integer(0), size, lanes) as turn:
        asked = b.fmul(widened(b, at(b, query, turn.index, I16), lanes), spread(b, scale, kind))
        b.store(asked, at(b, wide_query, turn.index), align=4)
        b.store(same(0.0, kind), at(b, sums, turn.index), align=4)
    with loop(b, integer(0), keys_seen, BLOCK, [LEAST, ir.Constant(F32, 0.0)]) as block:
        here = least(b, integer(BLOCK), b.sub(keys_seen, block.index))
        start = b.mul(block.index, size)
        head = _Head(at(b, keys, start, I16), at(b, values, start, I16), wide_query, weights, sums, size, kind)
        before, total = block.values
        largest = _scores(b, head, here, before)
        rescale = lane(b, exponential(b, spread(b, b.fsub(before, largest), kind)), 0)
        added = _softmax(b, head, here, largest)
        _add_values(b, head, here, rescale)
        block.following = [largest, fma(b, rescale, total, added)]
    share = spread(b, b.fdiv(ir.Constant(F32, 1.0), block.results[1]), kind)
    with loop(b, integer(0), size, lanes) as turn:
        store_bf16(b, b.fmul(load(b, at(b, sums, turn.index), kind), share), at(b, out, turn.index, I16))
    b.ret_void()


def _scores(b: ir.IRBuilder, head: _Head, count: Any, largest: Any) -> Any:
    """Query with each key to `weights`, up to a whole register; the largest of these and `largest`."""
    whole = down_to(b, count, TOGETHER)
    for start, stop, together in ((integer(0), whole, TOGETHER), (whole, count, 1)):
        with loop(b, start, stop, together, [largest]) as turn:
            keys = [b.add(turn.index, integer(i)) for i in range(together)]
            with loop(b, integer(0), head.size, head.kind.count, [same(0.0, head.kind)] * together) as inner:
                asked = load(b, at(b, head.query, inner.index), head.kind)
                inner.following = [
                    fma(b, head.register(b, head.keys, key, inner.index), asked, total)
                    for key, total in zip(keys, inner.values, strict=True)
                ]
            best = turn.values[0]
            for key, total in zip(keys, inner.results, strict=True):
                score = lanes_added(b, total)
                b.store(score, at(b, head.weights, key))
                best = b.select(b.fcmp_ordered(">", score, best), score, best)
            turn.following = [best]
        largest = turn.results[0]
    return largest


def _softmax(b: ir.IRBuilder, head: _Head, count: Any, largest: Any) -> Any:
    """exp(weight - largest) to `weights`; their sum."""
    lanes = head.kind.count
    up = down_to(b, b.add(count, integer(lanes - 1)), lanes)
    with loop(b, count, up, 1) as beyond:
        b.store(LEAST, at(b, head.weights, beyond.index))
    with loop(b, integer(0), up, lanes, [same(0.0, head.kind)]) as turn:
        place = at(b, head.weights, turn.index)
        power = exponential(b, b.fsub(load(b, place, head.kind), spread(b, largest, head.kind)))
        b.store(power, place, align=4)
        turn.following = [b.fadd(turn.values[0], power)]
    return lanes_added(b, turn.results[0])


def _add_values(b: ir.IRBuilder, head: _Head, count: Any, rescale: Any) -> None:
    """sums = sums * rescale + weights with values, several registers of a head at a time, then one."""
    lanes = head.kind.count
    wide = down_to(b, head.size, TOGETHER * lanes)
    for start, stop, registers in ((integer(0), wide, TOGETHER), (wide, head.size, 1)):
        with loop(b, start, stop, registers * lanes) as column:
            places = [b.add(column.index, integer(i * lanes)) for i in range(registers)]
            sums = [load(b, at(b, head.sums, place), head.kind) for place in places]
            earlier = [b.fmul(total, spread(b, rescale, head.kind)) for total in sums]
            with loop(b, integer(0), count, 1, earlier) as key:
                weight = spread(b, load(b, at(b, head.weights, key.index), F32), head.kind)
                key.following = [
                    fma(b, head.register(b, head.values, key.index, place), weight, total)
                    for place, total in zip(places, key.values, strict=True)
                ]
            for place, total in zip(places, key.results, strict=True):
                b.store(total, at(b, head.sums, place), align=4)
