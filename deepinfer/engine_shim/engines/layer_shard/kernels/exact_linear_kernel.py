"""A bf16 matrix product with exactly torch's bits and several times its speed.

On an AVX2 machine torch computes every output of a bf16 linear as one dot product of its own: 64 running sums in fp32
(8 registers of 8 lanes), added up in a fixed tree. That makes each row's result independent of the rows beside it,
which is why a batched answer can equal a lone one; but it converts every weight to fp32 again for every row. The kernel
here does the same additions in the same order, for tiles of 4 rows by 3 outputs, so that the conversion is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    I16,
    I64,
    LANES,
    PTR,
    at,
    begin_function,
    begin_share,
    define_entry,
    down_to,
    fma,
    integer,
    lanes_added,
    least,
    load,
    loop,
    range_of,
    same,
    store_bf16,
    widened,
)

CHAINS = 8  # registers torch keeps running sums in
STRIDE = LANES * CHAINS  # the inner dimension must be a multiple of this
ROWS_AT_ONCE = 32  # input rows held in fp32, in the second-level cache
TILE_ROWS, TILE_OUTPUTS = 4, 3  # 12 sums and 3 weights: there are 16 registers


def scratch_floats(rows: int, inner: int, threads: int) -> int:
    """How many floats of working memory a call needs."""
    return threads * (min(rows, ROWS_AT_ONCE) + TILE_OUTPUTS) * inner


def define_linear(module: ir.Module) -> None:
    """linear(x, weight, out, scratch (addresses), rows, outputs, inner, threads)."""
    for rows in range(2, TILE_ROWS + 1):
        for outputs in (1, TILE_OUTPUTS):
            _define_tile(module, rows, outputs)
    _define_widen(module)
    _define_single_row(module)
    _define_rows_by_outputs(module)
    define_entry(module, "linear", _define_share(module), 8)


def _tree(b: ir.IRBuilder, chain: Callable[[int], list[Any]], first: int = 0, step: int = 1) -> list[Any]:
    """Torch adds the upper half of its registers onto the lower half until one is left."""
    if step == CHAINS:
        return chain(first)
    left = _tree(b, chain, first, step * 2)
    right = _tree(b, chain, first + step, step * 2)
    return [b.fadd(x, y) for x, y in zip(left, right, strict=True)]


def _define_tile(module: ir.Module, rows: int, outputs: int) -> None:
    """tile(x, weight, out, inner, out_row_stride): `rows` by `outputs` dot products of fp32 copies."""
    function, b = begin_function(module, f"tile_{rows}x{outputs}", [PTR, PTR, PTR, I64, I64])
    x, weight, out, inner, out_stride = function.args
    x_rows = [at(b, x, b.mul(integer(row), inner)) for row in range(rows)]
    weight_rows = [at(b, weight, b.mul(integer(row), inner)) for row in range(outputs)]

    def chain(number: int) -> list[Any]:
        with loop(b, integer(number * LANES), inner, STRIDE, [same(0.0)] * (rows * outputs)) as turn:
            weights = [load(b, at(b, row, turn.index)) for row in weight_rows]
            inputs = [load(b, at(b, row, turn.index)) for row in x_rows]
            pairs = [(i, w) for i in inputs for w in weights]
            turn.following = [fma(b, i, w, total) for (i, w), total in zip(pairs, turn.values, strict=True)]
        return turn.results

    for number, total in enumerate(_tree(b, chain)):
        row, output = divmod(number, outputs)
        place = b.add(b.mul(integer(row), out_stride), integer(output))
        store_bf16(b, lanes_added(b, total), at(b, out, place, I16))
    b.ret_void()


def _define_widen(module: ir.Module) -> None:
    """widen(from, to, count): bf16 to fp32."""
    function, b = begin_function(module, "widen", [PTR, PTR, I64])
    source, target, count = function.args
    with loop(b, integer(0), count, LANES) as turn:
        b.store(widened(b, at(b, source, turn.index, I16)), at(b, target, turn.index), align=4)
    b.ret_void()


def _define_single_row(module: ir.Module) -> None:
    """single_row(x, weight, out, inner): one dot product, straight from the bf16 weights, which are read once."""
    function, b = begin_function(module, "single_row", [PTR, PTR, PTR, I64])
    x, weight, out, inner = function.args
    with loop(b, integer(0), inner, STRIDE, [same(0.0)] * CHAINS) as turn:
        places = [b.add(turn.index, integer(number * LANES)) for number in range(CHAINS)]
        turn.following = [
            fma(b, load(b, at(b, x, place)), widened(b, at(b, weight, place, I16)), total)
            for place, total in zip(places, turn.values, strict=True)
        ]
    (total,) = _tree(b, lambda number: [turn.results[number]])
    store_bf16(b, lanes_added(b, total), out)
    b.ret_void()


def _define_rows_by_outputs(module: ir.Module) -> None:
    """rows_by_outputs_N(x, weight, out, rows, inner, out_row_stride): all rows against N outputs, tile by tile."""
    for outputs in (1, TILE_OUTPUTS):
        function, b = begin_function(module, f"rows_by_{outputs}", [PTR, PTR, PTR, I64, I64, I64])
        x, weight, out, rows, inner, out_stride = function.args
        # the last tile starts early enough to be whole: some rows are then computed twice, to the same bits
        for height in range(2, TILE_ROWS + 1):
            enough = b.icmp_signed("==" if height < TILE_ROWS else ">=", rows, integer(height))
            with b.if_then(enough), loop(b, integer(0), rows, height) as turn:
                row = least(b, turn.index, b.sub(rows, integer(height)))
                arguments = [at(b, x, b.mul(row, inner)), weight, at(b, out, b.mul(row, out_stride), I16)]
                b.call(module.globals[f"tile_{height}x{outputs}"], [*arguments, inner, out_stride])
        b.ret_void()


def _define_share(module: ir.Module) -> ir.Function:
    """What one thread does: its range of outputs, for all rows, `ROWS_AT_ONCE` at a time."""
    function, b, given, number = begin_share(module, "linear_share", 8)
    x, weight, out, scratch = (b.inttoptr(address, PTR) for address in given[:4])
    rows, outputs, inner, threads = given[4:]
    first, last = range_of(b, number, threads, outputs, TILE_OUTPUTS)
    held = least(b, rows, integer(ROWS_AT_ONCE))
    wide_x = at(b, scratch, b.mul(number, b.mul(b.add(held, integer(TILE_OUTPUTS)), inner)))
    wide_weight = at(b, wide_x, b.mul(held, inner))
    with b.if_then(b.icmp_signed("<", first, last)), loop(b, integer(0), rows, ROWS_AT_ONCE) as turn:
        now = least(b, integer(ROWS_AT_ONCE), b.sub(rows, turn.index))
        b.call(module.globals["widen"], [at(b, x, b.mul(turn.index, inner), I16), wide_x, b.mul(now, inner)])
        out_here = at(b, out, b.mul(turn.index, outputs), I16)
        with b.if_else(b.icmp_signed("==", now, integer(1))) as (alone, together):
            with alone, loop(b, first, last, 1) as output:
                here = [wide_x, at(b, weight, b.mul(output.index, inner), I16), at(b, out_here, output.index, I16)]
                b.call(module.globals["single_row"], [*here, inner])
            with together:
                _tiles_of_a_share(b, (wide_x, weight, out_here, wide_weight), (now, outputs, inner), (first, last))
    b.ret_void()
    return function


def _tiles_of_a_share(b: ir.IRBuilder, memory: Sequence[Any], sizes: Sequence[Any], bounds: Sequence[Any]) -> None:
    wide_x, weight, out, wide_weight = memory
    rows, outputs, inner = sizes
    first, last = bounds
    functions = b.module.globals
    whole = b.add(first, down_to(b, b.sub(last, first), TILE_OUTPUTS))
    for start, stop, step in ((first, whole, TILE_OUTPUTS), (whole, last, 1)):
        with loop(b, start, stop, step) as turn:
            source = at(b, weight, b.mul(turn.index, inner), I16)
            b.call(functions["widen"], [source, wide_weight, b.mul(integer(step), inner)])
            target = at(b, out, turn.index, I16)
            b.call(functions[f"rows_by_{step}"], [wide_x, wide_weight, target, rows, inner, outputs])
