"""RoPE of queries and keys in place, in one pass instead of fourteen of torch's operations, with their bits.

A head's number `i` is turned with number `i + half`: each product is rounded to bf16, and their sum again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    I16,
    LANES,
    PTR,
    at,
    begin_share,
    define_entry,
    integer,
    loop,
    range_of,
    store_bf16,
    through_bf16,
    widened,
)

ARGUMENTS = 15
STEP = 2 * LANES  # the numbers of a head that are turned must be a multiple of this


def define_rotation(module: ir.Module) -> None:
    """rotate(query, key, cosines, sines (addresses), tokens, half of the numbers turned, …, threads).

    In between: the heads of query and of key, their strides (of a token and of a head each), and that of a token's
    cosines and of its sines, in numbers.
    """
    define_entry(module, "rotate", _define_share(module), ARGUMENTS)


def _define_share(module: ir.Module) -> ir.Function:
    """What one thread does: its range of tokens."""
    function, b, given, number = begin_share(module, "rotate_share", ARGUMENTS)
    query, key, cosines, sines = (b.inttoptr(address, PTR) for address in given[:4])
    tokens, half, heads_of_query, heads_of_key = given[4:8]
    of_query, of_key, of_tables, threads = given[8:10], given[10:12], given[12:14], given[14]
    first, last = range_of(b, number, threads, tokens)
    with loop(b, first, last, 1) as token:
        table = [
            at(b, cosines, b.mul(token.index, of_tables[0]), I16),
            at(b, sines, b.mul(token.index, of_tables[1]), I16),
        ]
        for base, heads, strides in ((query, heads_of_query, of_query), (key, heads_of_key, of_key)):
            with loop(b, integer(0), heads, 1) as head:
                place = b.add(b.mul(token.index, strides[0]), b.mul(head.index, strides[1]))
                _turn_head(b, at(b, base, place, I16), table, half)
    b.ret_void()
    return function


def _turn_head(b: ir.IRBuilder, head: Any, table: Sequence[Any], half: Any) -> None:
    with loop(b, integer(0), half, LANES) as turn:
        low, high = turn.index, b.add(turn.index, half)
        x, y = (widened(b, at(b, head, place, I16)) for place in (low, high))
        for place, other, here in ((low, b.fneg(y), x), (high, x, y)):
            cosine, sine = (widened(b, at(b, base, place, I16)) for base in table)
            turned = b.fadd(through_bf16(b, b.fmul(here, cosine)), through_bf16(b, b.fmul(other, sine)))
            store_bf16(b, turned, at(b, head, place, I16))
