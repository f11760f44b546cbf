"""The words the kernels are written in: loops, eight-lane fp32 vectors, bf16, and work shared among threads."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

LANES = 8  # fp32 numbers in an AVX2 register

I16, I32, I64, F32, PTR = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
FLOATS = ir.VectorType(F32, LANES)
HALF = ir.VectorType(F32, LANES // 2)


def begin_function(module: ir.Module, name: str, arguments: Sequence[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
    """A function of this module's own, without a result."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def integer(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def same(value: float, kind: ir.Type = FLOATS) -> ir.Constant:
    """A constant of `kind`, in every lane where that is a vector."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def at(b: ir.IRBuilder, base: Any, index: Any, kind: ir.Type = F32) -> Any:
    return b.gep(base, [index], source_etype=kind)


class Turn:
    """One turn of a loop: set `following` to the values the next turn carries."""

    def __init__(self, index: Any, values: list[Any]) -> None:
        self.index = index
        self.values = values
        self.following: list[Any] = values

    @property
    def results(self) -> list[Any]:
        return self.values


@contextmanager
def loop(b: ir.IRBuilder, start: Any, stop: Any, step: int, carried: Sequence[Any] = ()) -> Iterator[Turn]:
    """`for index in range(start, stop, step)`; the carried values of the last turn are in `.results` afterwards."""
    before = b.block
    head, body, after = (b.append_basic_block(name) for name in ("head", "body", "after"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(start, before)
    values = [b.phi(value.type) for value in carried]
    for value, first in zip(values, carried, strict=True):
        value.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", index, stop), body, after)
    b.position_at_end(body)
    turn = Turn(index, values)
    yield turn
    index.add_incoming(b.add(index, integer(step)), b.block)
    for value, following in zip(values, turn.following, strict=True):
        value.add_incoming(following, b.block)
    b.branch(head)
    b.position_at_end(after)


def least(b: ir.IRBuilder, left: Any, right: Any) -> Any:
    return b.select(b.icmp_signed("<", left, right), left, right)


def down_to(b: ir.IRBuilder, value: Any, multiple: int) -> Any:
    return b.mul(b.sdiv(value, integer(multiple)), integer(multiple))


def intrinsic(b: ir.IRBuilder, name: str, kind: ir.Type, *arguments: Any) -> Any:
    """A call of LLVM's `name` on numbers or vectors of `kind`, whose result is of `kind` too."""
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else {F32: "f32", ir.DoubleType(): "f64"}[kind]
    full = f"llvm.{name}.{suffix}"
    function = b.module.globals.get(full) or ir.Function(b.module, ir.FunctionType(kind, [kind] * len(arguments)), full)
    return b.call(function, arguments)


def fma(b: ir.IRBuilder, left: Any, right: Any, total: Any) -> Any:
    return intrinsic(b, "fma", total.type, left, right, total)


def room(b: ir.IRBuilder, floats: int) -> Any:
    """Memory of the function's own."""
    memory = b.alloca(F32, floats)
    memory.type = PTR  # llvmlite still gives it a typed pointer, which would take no vectors
    return memory


def load(b: ir.IRBuilder, address: Any, kind: ir.Type = FLOATS) -> Any:
    """One fp32 or several."""
    return b.load(address, typ=kind, align=4)


def widened(b: ir.IRBuilder, address: Any, lanes: int = LANES) -> Any:
    """The bf16 numbers of a register at `address` as fp32: a bf16 is the upper half of one."""
    wide = b.zext(b.load(address, typ=ir.VectorType(I16, lanes), align=2), ir.VectorType(I32, lanes))
    return b.bitcast(b.shl(wide, same(16, wide.type)), ir.VectorType(F32, lanes))


def part(b: ir.IRBuilder, vector: Any, first: int, lanes: int) -> Any:
    """Some neighbouring lanes of a vector."""
    return b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, lanes), list(range(first, first + lanes))))


def lane(b: ir.IRBuilder, vector: Any, number: int) -> Any:
    return b.extract_element(vector, ir.Constant(I32, number))


def spread(b: ir.IRBuilder, value: Any, kind: ir.VectorType = FLOATS) -> Any:
    """A number in every lane."""
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, one, same(0, ir.VectorType(I32, kind.count)))


def lanes_added(b: ir.IRBuilder, vector: Any) -> Any:
    """The upper half onto the lower half, until one lane is left: the order of torch and of MKL."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        vector = b.fadd(part(b, vector, 0, lanes), part(b, vector, lanes, lanes))
    return lane(b, vector, 0)


def _with_lanes(like: ir.Type, kind: ir.Type) -> ir.Type:
    return ir.VectorType(kind, like.count) if isinstance(like, ir.VectorType) else kind


def _rounded(b: ir.IRBuilder, value: Any) -> Any:
    """The bits of the nearest bf16 (ties to even, as torch), in the lower half of 32; a NaN stays one."""
    kind = _with_lanes(value.type, I32)
    bits = b.bitcast(value, kind)
    odd = b.and_(b.lshr(bits, same(16, kind)), same(1, kind))
    nearest = b.lshr(b.add(bits, b.add(odd, same(0x7FFF, kind))), same(16, kind))
    return b.select(b.fcmp_unordered("uno", value, value), same(0x7FC0, kind), nearest)


def through_bf16(b: ir.IRBuilder, value: Any) -> Any:
    """`value` rounded to bf16 and back."""
    bits = _rounded(b, value)
    return b.bitcast(b.shl(bits, same(16, bits.type)), value.type)


def store_bf16(b: ir.IRBuilder, value: Any, address: Any) -> None:
    bits = _rounded(b, value)
    b.store(b.trunc(bits, _with_lanes(bits.type, I16)), address, align=2)


def exponential(b: ir.IRBuilder, x: Any) -> Any:
    """torch's `fexp_u20`, for vectors of x <= 0: 2**x is made by putting x, corrected by a cubic in its fraction, where
    an fp32 has its exponent (Malossi et al., "Fast exponential computation on SIMD architectures", 2015)."""
    kind = x.type
    log2 = b.fmul(x, _bits(0x3FB8AA3B, kind))
    fraction = b.fsub(log2, intrinsic(b, "floor", kind, log2))
    cubic: Any = _bits(0xBDA235D5, kind)
    for coefficient in (0xBE65B8F5, 0x3E9B69F0, 0x38E077A1):
        cubic = fma(b, fraction, cubic, _bits(coefficient, kind))
    number = fma(b, b.fsub(log2, cubic), same(2.0**23, kind), same(127 * 2.0**23, kind))
    power = b.bitcast(b.fptosi(number, _with_lanes(kind, I32)), kind)
    return b.select(b.fcmp_ordered("<", x, _bits(0xC2AEAC50, kind)), same(0.0, kind), power)


def _bits(pattern: int, kind: ir.Type) -> ir.Constant:
    """A vector of the fp32 with these bits."""
    return same(struct.unpack("<f", struct.pack("<I", pattern))[0], kind)


def sigmoid(b: ir.IRBuilder, x: Any) -> Any:
    """1 / (1 + exp(-x)) of a vector, without an overflow on either side."""
    kind = x.type
    positive = b.fcmp_ordered(">", x, same(0.0, kind))
    power = exponential(b, b.select(positive, b.fneg(x), x))
    return b.fdiv(b.select(positive, same(1.0, kind), power), b.fadd(same(1.0, kind), power))


def define_entry(module: ir.Module, name: str, share: ir.Function, arguments: int) -> None:
    """name(64-bit arguments, the last the number of threads): each thread runs `share` on an array of them.

    One thread is the caller alone; more are torch's own OpenMP team.
    """
    parallel = module.globals.get("GOMP_parallel") or ir.Function(
        module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I32, I32]), "GOMP_parallel"
    )
    function, b = begin_function(module, name, [I64] * arguments)
    function.linkage = ""
    job = b.alloca(I64, arguments)
    for number, value in enumerate(function.args):
        b.store(value, at(b, job, integer(number), I64))
    threads = function.args[-1]
    with b.if_else(b.icmp_signed("==", threads, integer(1))) as (alone, together):
        with alone:
            b.call(share, [job])
        with together:
            b.call(parallel, [share, job, b.trunc(threads, I32), ir.Constant(I32, 0)])
    b.ret_void()


def begin_share(module: ir.Module, name: str, arguments: int) -> tuple[ir.Function, ir.IRBuilder, list[Any], Any]:
    """A function for `define_entry`: itself, its builder, the arguments, and this thread's number."""
    number_of = module.globals.get("omp_get_thread_num") or ir.Function(
        module, ir.FunctionType(I32, []), "omp_get_thread_num"
    )
    function, b = begin_function(module, name, [PTR])
    given = [b.load(at(b, function.args[0], integer(i), I64), typ=I64) for i in range(arguments)]
    return function, b, given, b.sext(b.call(number_of, []), I64)


def range_of(b: ir.IRBuilder, number: Any, threads: Any, count: Any, multiple: int = 1) -> tuple[Any, Any]:
    """Which of `count` pieces thread `number` does: neighbouring ones, from a multiple of `multiple` on."""
    each = b.sdiv(b.sub(b.add(count, threads), integer(1)), threads)
    each = down_to(b, b.add(each, integer(multiple - 1)), multiple)
    first = b.mul(number, each)
    return first, least(b, count, b.add(first, each))
