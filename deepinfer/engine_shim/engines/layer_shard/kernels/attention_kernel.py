"""Attention of one new token a sequence over its keys and values, all sequences of a step in one call.

The new key and value are written to the sequence's slab (`kv.py`) on the way. What one head of one sequence gets is
computed by `attended`, of which there are two kinds (`exact_attention_kernel.py`, `packed_attention_kernel.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    PTR,
    at,
    begin_share,
    define_entry,
    integer,
    loop,
)

SIZE_STEP, LONGEST_HEAD = 16, 256  # a head's size must be a multiple of the one and at most the other
ARGUMENTS = 19


def define_attention(module: ir.Module) -> None:
    """attention(query, key, value, out, table, sequences, layer, groups, heads a group, size, …, threads).

    In between: the scale as the bits of an fp32, the window in tokens (0: none), and the strides of query, key and
    value, each of a token and of a head, in numbers. `table` has for each sequence its slab's address, its capacity and
    its length with the new token, which need not be in the slab yet. `out` is [sequence, head, size]. The module has an
    `attended` already.
    """
    define_entry(module, "attention", _define_share(module), ARGUMENTS)


def _define_share(module: ir.Module) -> ir.Function:
    """What one thread does: every so-manieth group of heads, over all sequences."""
    function, b, given, number = begin_share(module, "attention_share", ARGUMENTS)
    query, key, value, out, table = (b.inttoptr(address, PTR) for address in given[:5])
    sequences, layer, groups, shared, size, scale_bits, window = given[5:12]
    strides, threads = given[12:18], given[18]
    scale = b.bitcast(b.trunc(scale_bits, I32), F32)
    units = b.mul(sequences, groups)
    turns = b.sdiv(b.sub(b.add(units, b.sub(threads, integer(1))), number), threads)
    with loop(b, integer(0), turns, 1) as turn:
        unit = b.add(b.mul(turn.index, threads), number)
        sequence, group = b.sdiv(unit, groups), b.srem(unit, groups)
        entry = b.mul(sequence, integer(3))
        slab, capacity, length = (b.load(at(b, table, b.add(entry, integer(i)), I64), typ=I64) for i in range(3))
        plane = b.mul(capacity, size)
        first_plane = b.add(b.mul(b.mul(layer, integer(2)), groups), group)
        keys = at(b, b.inttoptr(slab, PTR), b.mul(first_plane, plane), I16)
        values = at(b, keys, b.mul(groups, plane), I16)
        for source, target, stride in ((key, keys, strides[2:4]), (value, values, strides[4:6])):
            fresh = at(b, source, _place(b, sequence, group, stride), I16)
            _copy(b, fresh, at(b, target, b.mul(b.sub(length, integer(1)), size), I16), size)
        beyond = b.sub(length, window)
        limited = b.and_(b.icmp_signed(">", window, integer(0)), b.icmp_signed(">", beyond, integer(0)))
        skipped = b.select(limited, beyond, integer(0))
        seen = [at(b, base, b.mul(skipped, size), I16) for base in (keys, values)]
        with loop(b, integer(0), shared, 1) as head:
            number_of_head = b.add(b.mul(group, shared), head.index)
            asked = at(b, query, _place(b, sequence, number_of_head, strides[:2]), I16)
            place = b.mul(b.add(b.mul(sequence, b.mul(groups, shared)), number_of_head), size)
            arguments = [asked, *seen, at(b, out, place, I16), b.sub(length, skipped), size, scale]
            b.call(module.globals["attended"], arguments)
    b.ret_void()
    return function


def _place(b: ir.IRBuilder, token: Any, head: Any, strides: Sequence[Any]) -> Any:
    return b.add(b.mul(token, strides[0]), b.mul(head, strides[1]))


def _copy(b: ir.IRBuilder, source: Any, target: Any, count: Any) -> None:
    kind = ir.VectorType(I16, LANES)
    with loop(b, integer(0), count, LANES) as turn:
        b.store(b.load(at(b, source, turn.index, I16), typ=kind, align=2), at(b, target, turn.index, I16), align=2)
