"""RMSNorm of bf16 rows in one pass instead of torch's eight operations, with their bits.

torch squares in fp32 and adds up a row in a cascade (SumKernel.cpp): four running registers take 32 numbers a turn;
after 16 turns they are added to a second level, after 16 of those to a third, so that only sums of like size meet.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    F32,
    I16,
    I32,
    LANES,
    PTR,
    at,
    begin_share,
    define_entry,
    integer,
    intrinsic,
    lane,
    least,
    loop,
    range_of,
    same,
    spread,
    store_bf16,
    through_bf16,
    widened,
)

CHAINS = 4  # registers torch adds a row up in
STRIDE = LANES * CHAINS  # a row must be a multiple of this
LEVEL = 16 * STRIDE  # numbers after which a level is added to the next
LONGEST = 16 * LEVEL  # a third level would begin here


def define_norm(module: ir.Module) -> None:
    """norm(x, weight, out (addresses), rows, width, epsilon as the bits of an fp32, threads)."""
    define_entry(module, "norm", _define_share(module), 7)


def _define_share(module: ir.Module) -> ir.Function:
    """What one thread does: its range of rows."""
    function, b, given, number = begin_share(module, "norm_share", 7)
    x, weight, out = (b.inttoptr(address, PTR) for address in given[:3])
    rows, width, epsilon_bits, threads = given[3:]
    epsilon = b.bitcast(b.trunc(epsilon_bits, I32), F32)
    first, last = range_of(b, number, threads, rows)
    with loop(b, first, last, 1) as row:
        x_row, out_row = (at(b, base, b.mul(row.index, width), I16) for base in (x, out))
        mean = b.fdiv(_sum_of_squares(b, x_row, width), b.sitofp(width, F32))
        root = intrinsic(b, "sqrt", F32, b.fadd(mean, epsilon))
        scale = spread(b, b.fdiv(ir.Constant(F32, 1.0), root))
        with loop(b, integer(0), width, LANES) as turn:
            normal = through_bf16(b, b.fmul(widened(b, at(b, x_row, turn.index, I16)), scale))
            scaled = b.fmul(widened(b, at(b, weight, turn.index, I16)), normal)
            store_bf16(b, scaled, at(b, out_row, turn.index, I16))
    b.ret_void()
    return function


def _sum_of_squares(b: ir.IRBuilder, row: Any, width: Any) -> Any:
    nothing = [same(0.0)] * CHAINS
    with loop(b, integer(0), width, LEVEL, [*nothing, *nothing]) as level:
        stop = least(b, width, b.add(level.index, integer(LEVEL)))
        with loop(b, level.index, stop, STRIDE, nothing) as turn:
            places = [b.add(turn.index, integer(number * LANES)) for number in range(CHAINS)]
            numbers = [widened(b, at(b, row, place, I16)) for place in places]
            turn.following = [b.fadd(s, b.fmul(x, x)) for s, x in zip(turn.values, numbers, strict=True)]
        # the last level, when it is not full, is the one the others are added to
        full = b.icmp_signed("==", b.sub(stop, level.index), integer(LEVEL))
        upper, lower = level.values[:CHAINS], turn.results
        level.following = [
            *(b.select(full, b.fadd(u, s), u) for u, s in zip(upper, lower, strict=True)),
            *(b.select(full, same(0.0), s) for s in lower),
        ]
    chains = [b.fadd(s, u) for u, s in zip(level.results[:CHAINS], level.results[CHAINS:], strict=True)]
    total = chains[0]
    for chain in chains[1:]:
        total = b.fadd(total, chain)
    added = ir.Constant(F32, 0.0)
    for number in range(LANES):
        added = b.fadd(added, lane(b, total, number))
    return added
