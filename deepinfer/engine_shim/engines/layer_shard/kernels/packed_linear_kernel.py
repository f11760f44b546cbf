"""A bf16 matrix product whose every output is one running sum, so that no row's bits depend on the rows beside it.

Weights lie as the instruction for pairs of bf16 wants them (`vdpbf16ps` of AVX-512, as oneDNN and vLLM pack for it):
[outputs / GROUP][inner / 2][GROUP][2]. One register has a pair of weights for each of several outputs; a row's pair of
inputs is spread over a register, and each lane adds its two products to its own fp32 sum. A tile is several rows by
one group of outputs; however high it is, each output adds the same pairs in the same order. Where the CPU lacks the
instruction, both numbers of a pair are widened to fp32 and multiplied and added one after the other.

The inner dimension goes in blocks, so that a group's weights stay in the second-level cache while all rows use them;
the sums wait in memory between two blocks, which changes no bit. The last step rounds to bf16; "gated" multiplies the
first half of a group, through SiLU, with the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from deepinfer.engine_shim.engines.layer_shard.kernels.ir import (
    F32,
    I16,
    I32,
    I64,
    PTR,
    at,
    begin_function,
    begin_share,
    define_entry,
    fma,
    integer,
    least,
    load,
    loop,
    range_of,
    room,
    same,
    sigmoid,
    spread,
    store_bf16,
)

ROWS_AT_ONCE = 192  # whose sums are held
PAIRS_AT_ONCE = 1024  # of the inner dimension
REGISTERS = 2  # of a group
ARGUMENTS = 9


@dataclass(frozen=True)
class Shape:
    """What the kernel is made of on a CPU: fp32 lanes, rows of the highest tile, whether pairs have an instruction."""

    lanes: int
    tile_rows: int
    pair_instruction: bool

    @property
    def group(self) -> int:
        """Outputs whose weights lie together."""
        return REGISTERS * self.lanes


AVX512_BF16 = Shape(16, 12, True)
AVX512 = Shape(16, 10, False)
AVX2 = Shape(8, 4, False)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's type for bf16, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def define_packed_linear(module: ir.Module, shape: Shape) -> None:
    """packed_linear(x, weight, bias, out (addresses), rows, groups of outputs, inner pairs, gated, threads).

    `x` is bf16 [row, 2 * pairs], `bias` fp32 [groups * group] or 0, `out` bf16 [row, groups * group], half if gated.
    """
    for rows in range(1, shape.tile_rows + 1):
        _define_tile(module, shape, rows)
    _define_tiles(module, shape)
    _define_begin(module, shape)
    _define_finish(module, shape)
    _define_finish_gated(module, shape)
    define_entry(module, "packed_linear", _define_share(module, shape), ARGUMENTS)


def _floats(shape: Shape) -> ir.VectorType:
    return ir.VectorType(F32, shape.lanes)


def _define_tile(module: ir.Module, shape: Shape, rows: int) -> None:
    """packed_tile_N(x, pairs in a row of x, weight, sums, pairs): N rows by a group, added to `sums` [row, group]."""
    function, b = begin_function(module, f"packed_tile_{rows}", [PTR, I64, PTR, PTR, I64])
    x, stride, weight, sums, pairs = function.args
    x_rows = [at(b, x, b.mul(integer(row), stride), I32) for row in range(rows)]
    places = [at(b, sums, integer(number * shape.lanes)) for number in range(rows * REGISTERS)]
    whole = ir.VectorType(I32, shape.lanes)
    with loop(b, integer(0), pairs, 1, [load(b, place, _floats(shape)) for place in places]) as turn:
        here = at(b, weight, b.mul(turn.index, integer(shape.group)), I32)
        weights = [load(b, at(b, here, integer(i * shape.lanes), I32), whole) for i in range(REGISTERS)]
        weights = [_operand(b, shape, bits) for bits in weights]
        following = []
        for row, address in enumerate(x_rows):
            pair = _operand(b, shape, spread(b, load(b, at(b, address, turn.index, I32), I32), whole))
            totals = turn.values[row * REGISTERS : (row + 1) * REGISTERS]
            following += [_added(b, shape, total, pair, w) for total, w in zip(totals, weights, strict=True)]
        turn.following = following
    for total, place in zip(turn.results, places, strict=True):
        b.store(total, place, align=4)
    b.ret_void()


def _operand(b: ir.IRBuilder, shape: Shape, pairs: Any) -> tuple[Any, ...]:
    """Pairs of bf16 as `_added` takes them: together, or the first and the second of each as fp32."""
    if shape.pair_instruction:
        return (b.bitcast(pairs, ir.VectorType(_BFloat(), 2 * shape.lanes)),)
    first = b.shl(pairs, same(16, pairs.type))
    second = b.and_(pairs, same(-65536, pairs.type))
    return b.bitcast(first, _floats(shape)), b.bitcast(second, _floats(shape))


def _added(b: ir.IRBuilder, shape: Shape, total: Any, left: Sequence[Any], right: Sequence[Any]) -> Any:
    if not shape.pair_instruction:
        for x, w in zip(left, right, strict=True):
            total = fma(b, x, w, total)
        return total
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    kind = ir.FunctionType(total.type, [total.type, left[0].type, right[0].type])
    return b.call(b.module.globals.get(name) or ir.Function(b.module, kind, name), [total, *left, *right])


def _define_tiles(module: ir.Module, shape: Shape) -> None:
    """packed_tiles(x, pairs in a row of x, weight, sums, pairs, rows): in tiles of nearly equal height."""
    function, b = begin_function(module, "packed_tiles", [PTR, I64, PTR, PTR, I64, I64])
    x, stride, weight, sums, pairs, rows = function.args
    tiles = b.sdiv(b.add(rows, integer(shape.tile_rows - 1)), integer(shape.tile_rows))
    low, higher = b.sdiv(rows, tiles), b.srem(rows, tiles)
    of_higher = b.mul(higher, b.add(low, integer(1)))
    for start, stop, height in ((integer(0), of_higher, b.add(low, integer(1))), (of_higher, rows, low)):
        done = b.append_basic_block("done")
        choice = b.switch(height, done)
        for candidate in range(1, shape.tile_rows + 1):
            choice.add_case(integer(candidate), block := b.append_basic_block(f"height_{candidate}"))
            b.position_at_end(block)
            with loop(b, start, stop, candidate) as turn:
                here = [at(b, x, b.mul(turn.index, stride), I32), stride, weight]
                b.call(
                    module.globals[f"packed_tile_{candidate}"],
                    [*here, at(b, sums, b.mul(turn.index, integer(shape.group))), pairs],
                )
            b.branch(done)
        b.position_at_end(done)
    b.ret_void()


def _define_begin(module: ir.Module, shape: Shape) -> None:
    """packed_begin(sums, bias, rows): every row's sums begin with the bias, or with nothing where that is null."""
    function, b = begin_function(module, "packed_begin", [PTR, PTR, I64])
    sums, bias, rows = function.args
    with b.if_else(b.icmp_unsigned("==", b.ptrtoint(bias, I64), integer(0))) as (without, with_bias):
        for arm, biased in ((without, False), (with_bias, True)):
            with arm:
                for number in range(REGISTERS):
                    offset = integer(number * shape.lanes)
                    first = load(b, at(b, bias, offset), _floats(shape)) if biased else same(0.0, _floats(shape))
                    with loop(b, integer(0), rows, 1) as row:
                        place = b.add(b.mul(row.index, integer(shape.group)), offset)
                        b.store(first, at(b, sums, place), align=4)
    b.ret_void()


def _define_finish(module: ir.Module, shape: Shape) -> None:
    """packed_finish(sums, out, numbers in a row of out, rows)."""
    function, b = begin_function(module, "packed_finish", [PTR, PTR, I64, I64])
    sums, out, stride, rows = function.args
    with loop(b, integer(0), rows, 1) as row:
        for number in range(REGISTERS):
            offset = integer(number * shape.lanes)
            total = load(b, at(b, sums, b.add(b.mul(row.index, integer(shape.group)), offset)), _floats(shape))
            store_bf16(b, total, at(b, out, b.add(b.mul(row.index, stride), offset), I16))
    b.ret_void()


def _define_finish_gated(module: ir.Module, shape: Shape) -> None:
    """packed_finish_gated(sums, out, numbers in a row of out, rows): SiLU of the first register, times the second."""
    function, b = begin_function(module, "packed_finish_gated", [PTR, PTR, I64, I64])
    sums, out, stride, rows = function.args
    with loop(b, integer(0), rows, 1) as row:
        here = at(b, sums, b.mul(row.index, integer(shape.group)))
        gate, up = (load(b, at(b, here, integer(number * shape.lanes)), _floats(shape)) for number in range(REGISTERS))
        through = b.fmul(b.fmul(gate, sigmoid(b, gate)), up)
        store_bf16(b, through, at(b, out, b.mul(row.index, stride), I16))
    b.ret_void()


def _define_share(module: ir.Module, shape: Shape) -> ir.Function:
    """What one thread does: its range of groups, for all rows, `ROWS_AT_ONCE` at a time."""
    function, b, given, number = begin_share(module, "packed_linear_share", ARGUMENTS)
    x, weight, bias, out = (b.inttoptr(address, PTR) for address in given[:4])
    rows, groups, pairs, gated, threads = given[4:]
    first, last = range_of(b, number, threads, groups)
    size = integer(shape.group)
    sums = room(b, ROWS_AT_ONCE * shape.group)
    per_group = b.select(b.icmp_signed("==", gated, integer(0)), size, integer(shape.lanes))
    stride = b.mul(groups, per_group)
    functions = module.globals
    with loop(b, integer(0), rows, ROWS_AT_ONCE) as block, loop(b, first, last, 1) as group:
        now = least(b, integer(ROWS_AT_ONCE), b.sub(rows, block.index))
        bias_here = at(b, bias, b.mul(group.index, size))
        bias_here = b.select(b.icmp_signed("==", given[2], integer(0)), bias, bias_here)
        b.call(functions["packed_begin"], [sums, bias_here, now])
        weight_here = at(b, weight, b.mul(group.index, b.mul(pairs, size)), I32)
        x_here = at(b, x, b.mul(block.index, pairs), I32)
        with loop(b, integer(0), pairs, PAIRS_AT_ONCE) as part:
            count = least(b, integer(PAIRS_AT_ONCE), b.sub(pairs, part.index))
            here = [at(b, x_here, part.index, I32), pairs, at(b, weight_here, b.mul(part.index, size), I32)]
            b.call(functions["packed_tiles"], [*here, sums, count, now])
        place = b.add(b.mul(block.index, stride), b.mul(group.index, per_group))
        finished = [sums, at(b, out, place, I16), stride, now]
        with b.if_else(b.icmp_signed("==", gated, integer(0))) as (plain, through_gate):
            with plain:
                b.call(functions["packed_finish"], finished)
            with through_gate:
                b.call(functions["packed_finish_gated"], finished)
    b.ret_void()
    return function
