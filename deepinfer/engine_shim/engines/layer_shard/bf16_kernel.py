"""A bf16 matrix product for CPUs without bf16 instructions, with exactly torch's bits and several times its speed.

On an AVX2 machine torch computes every output of a bf16 linear as one dot product of its own: 64 running sums in fp32
(8 registers of 8 lanes), added up in a fixed tree. That makes each row's result independent of the rows beside it,
which is why a batched answer can equal a lone one; but it converts every weight to fp32 again for every row. The kernel
here does the same additions in the same order, for tiles of 4 rows by 3 outputs, so that the conversion is shared.

It is LLVM IR compiled at load by llvmlite, so that no compiler is needed on the machine, and it runs on torch's own
OpenMP threads. `exact_linear.py` decides where it may be used, by comparing its bits with torch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]

LANES = 8  # fp32 numbers in an AVX2 register
CHAINS = 8  # registers torch keeps running sums in
STRIDE = LANES * CHAINS  # the inner dimension must be a multiple of this
ROWS_AT_ONCE = 32  # input rows held in fp32, in the second-level cache
TILE_ROWS, TILE_OUTPUTS = 4, 3  # 12 sums and 3 weights: there are 16 registers

I16, I32, I64, F32, PTR = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
FLOATS = ir.VectorType(F32, LANES)

# x, weight, out, scratch (addresses), rows, outputs, inner, threads
Product = Callable[[int, int, int, int, int, int, int, int], None]


class Bf16Kernel:
    """The compiled product, and what must stay alive while it can be called."""

    def __init__(self, openmp: Path) -> None:
        library = ctypes.CDLL(str(openmp))
        for name in ("GOMP_parallel", "omp_get_thread_num"):
            binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        self._engine = _compile(_module())
        address = self._engine.get_function_address("product")
        self.product: Product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(address)

    @staticmethod
    def scratch_floats(inner: int, threads: int) -> int:
        """How many floats of working memory a call needs."""
        return threads * (ROWS_AT_ONCE + TILE_OUTPUTS) * inner


def _compile(module: ir.Module) -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return _finalized(binding.create_mcjit_compiler(parsed, machine))


def _finalized(engine: Any) -> Any:
    engine.finalize_object()
    return engine


def _module() -> ir.Module:
    module = ir.Module("bf16_rows")
    for rows in range(2, TILE_ROWS + 1):
        for outputs in (1, TILE_OUTPUTS):
            _define_tile(module, rows, outputs)
    _define_widen(module)
    _define_single_row(module)
    _define_rows_by_outputs(module)
    _define_share(module)
    _define_product(module)
    return module


def _function(module: ir.Module, name: str, arguments: Sequence[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    if name != "product":
        function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _at(b: ir.IRBuilder, base: Any, index: Any, kind: ir.Type = F32) -> Any:
    return b.gep(base, [index], source_etype=kind)


@contextmanager
def _loop(b: ir.IRBuilder, start: Any, stop: Any, step: int, carried: Sequence[Any] = ()) -> Iterator[_Turn]:
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
    turn = _Turn(index, values)
    yield turn
    index.add_incoming(b.add(index, _int(step)), b.block)
    for value, following in zip(values, turn.following, strict=True):
        value.add_incoming(following, b.block)
    b.branch(head)
    b.position_at_end(after)


class _Turn:
    """One turn of a loop: set `following` to the values the next turn carries."""

    def __init__(self, index: Any, values: list[Any]) -> None:
        self.index = index
        self.values = values
        self.following: list[Any] = values

    @property
    def results(self) -> list[Any]:
        return self.values


def _least(b: ir.IRBuilder, left: Any, right: Any) -> Any:
    return b.select(b.icmp_signed("<", left, right), left, right)


def _fma(b: ir.IRBuilder, left: Any, right: Any, total: Any) -> Any:
    name = f"llvm.fma.v{LANES}f32"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(FLOATS, [FLOATS] * 3), name)
    return b.call(function, [left, right, total])


def _widened(b: ir.IRBuilder, address: Any) -> Any:
    """bf16 is the upper half of an fp32."""
    wide = b.zext(b.load(address, typ=ir.VectorType(I16, LANES), align=2), ir.VectorType(I32, LANES))
    return b.bitcast(b.shl(wide, ir.Constant(wide.type, [16] * LANES)), FLOATS)


def _tree(b: ir.IRBuilder, chain: Callable[[int], list[Any]], first: int = 0, step: int = 1) -> list[Any]:
    """Torch adds the upper half of its registers onto the lower half until one is left."""
    if step == CHAINS:
        return chain(first)
    left = _tree(b, chain, first, step * 2)
    right = _tree(b, chain, first + step, step * 2)
    return [b.fadd(x, y) for x, y in zip(left, right, strict=True)]


def _lanes_added(b: ir.IRBuilder, vector: Any) -> Any:
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = ([ir.Constant(I32, i + at) for i in range(lanes)] for at in (0, lanes))
        halves = [
            b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, lanes), [c.constant for c in half]))
            for half in (low, high)
        ]
        vector = b.fadd(*halves)
    return b.extract_element(vector, ir.Constant(I32, 0))


def _store_bf16(b: ir.IRBuilder, value: Any, address: Any) -> None:
    """Round to nearest, ties to even, as torch does; a NaN stays a NaN."""
    bits = b.bitcast(value, I32)
    odd = b.and_(b.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, ir.Constant(I32, 0x7FFF))), ir.Constant(I32, 16))
    is_nan = b.fcmp_unordered("uno", value, value)
    b.store(b.trunc(b.select(is_nan, ir.Constant(I32, 0x7FC0), rounded), I16), address, align=2)


def _define_tile(module: ir.Module, rows: int, outputs: int) -> None:
    """tile(x, weight, out, inner, out_row_stride): `rows` by `outputs` dot products of fp32 copies."""
    function, b = _function(module, f"tile_{rows}x{outputs}", [PTR, PTR, PTR, I64, I64])
    x, weight, out, inner, out_stride = function.args
    x_rows = [_at(b, x, b.mul(_int(row), inner)) for row in range(rows)]
    weight_rows = [_at(b, weight, b.mul(_int(row), inner)) for row in range(outputs)]

    def chain(number: int) -> list[Any]:
        with _loop(b, _int(number * LANES), inner, STRIDE, [_zeros()] * (rows * outputs)) as turn:
            weights = [b.load(_at(b, row, turn.index), typ=FLOATS, align=4) for row in weight_rows]
            inputs = [b.load(_at(b, row, turn.index), typ=FLOATS, align=4) for row in x_rows]
            pairs = [(i, w) for i in inputs for w in weights]
            turn.following = [_fma(b, i, w, total) for (i, w), total in zip(pairs, turn.values, strict=True)]
        return turn.results

    for number, total in enumerate(_tree(b, chain)):
        row, output = divmod(number, outputs)
        place = b.add(b.mul(_int(row), out_stride), _int(output))
        _store_bf16(b, _lanes_added(b, total), _at(b, out, place, I16))
    b.ret_void()


def _zeros() -> ir.Constant:
    return ir.Constant(FLOATS, [0.0] * LANES)


def _define_widen(module: ir.Module) -> None:
    """widen(from, to, count): bf16 to fp32."""
    function, b = _function(module, "widen", [PTR, PTR, I64])
    source, target, count = function.args
    with _loop(b, _int(0), count, LANES) as turn:
        b.store(_widened(b, _at(b, source, turn.index, I16)), _at(b, target, turn.index), align=4)
    b.ret_void()


def _define_single_row(module: ir.Module) -> None:
    """single_row(x, weight, out, inner): one dot product, straight from the bf16 weights, which are read once."""
    function, b = _function(module, "single_row", [PTR, PTR, PTR, I64])
    x, weight, out, inner = function.args
    with _loop(b, _int(0), inner, STRIDE, [_zeros()] * CHAINS) as turn:
        places = [b.add(turn.index, _int(number * LANES)) for number in range(CHAINS)]
        turn.following = [
            _fma(b, b.load(_at(b, x, place), typ=FLOATS, align=4), _widened(b, _at(b, weight, place, I16)), total)
            for place, total in zip(places, turn.values, strict=True)
        ]
    (total,) = _tree(b, lambda number: [turn.results[number]])
    _store_bf16(b, _lanes_added(b, total), out)
    b.ret_void()


def _define_rows_by_outputs(module: ir.Module) -> None:
    """rows_by_outputs_N(x, weight, out, rows, inner, out_row_stride): all rows against N outputs, tile by tile."""
    for outputs in (1, TILE_OUTPUTS):
        function, b = _function(module, f"rows_by_{outputs}", [PTR, PTR, PTR, I64, I64, I64])
        x, weight, out, rows, inner, out_stride = function.args
        # the last tile starts early enough to be whole: some rows are then computed twice, to the same bits
        for height in range(2, TILE_ROWS + 1):
            enough = b.icmp_signed("==" if height < TILE_ROWS else ">=", rows, _int(height))
            with b.if_then(enough), _loop(b, _int(0), rows, height) as turn:
                row = _least(b, turn.index, b.sub(rows, _int(height)))
                arguments = [_at(b, x, b.mul(row, inner)), weight, _at(b, out, b.mul(row, out_stride), I16)]
                b.call(module.globals[f"tile_{height}x{outputs}"], [*arguments, inner, out_stride])
        b.ret_void()


def _define_share(module: ir.Module) -> None:
    """share(job): what one thread does: its range of outputs, for all rows, `ROWS_AT_ONCE` at a time."""
    omp_number = ir.Function(module, ir.FunctionType(I32, []), "omp_get_thread_num")
    function, b = _function(module, "share", [PTR])
    job = [b.load(_at(b, function.args[0], _int(i), I64), typ=I64) for i in range(8)]
    x, weight, out, scratch = (b.inttoptr(address, PTR) for address in job[:4])
    rows, outputs, inner, threads = job[4:]
    number = b.sext(b.call(omp_number, []), I64)
    each = b.sdiv(b.sub(b.add(outputs, threads), _int(1)), threads)
    each = b.mul(b.sdiv(b.add(each, _int(TILE_OUTPUTS - 1)), _int(TILE_OUTPUTS)), _int(TILE_OUTPUTS))
    first = b.mul(number, each)
    last = _least(b, outputs, b.add(first, each))
    wide_x = _at(b, scratch, b.mul(number, b.mul(_int(ROWS_AT_ONCE + TILE_OUTPUTS), inner)))
    wide_weight = _at(b, wide_x, b.mul(_int(ROWS_AT_ONCE), inner))
    with b.if_then(b.icmp_signed("<", first, last)), _loop(b, _int(0), rows, ROWS_AT_ONCE) as turn:
        now = _least(b, _int(ROWS_AT_ONCE), b.sub(rows, turn.index))
        b.call(module.globals["widen"], [_at(b, x, b.mul(turn.index, inner), I16), wide_x, b.mul(now, inner)])
        out_here = _at(b, out, b.mul(turn.index, outputs), I16)
        with b.if_else(b.icmp_signed("==", now, _int(1))) as (alone, together):
            with alone, _loop(b, first, last, 1) as output:
                here = [wide_x, _at(b, weight, b.mul(output.index, inner), I16), _at(b, out_here, output.index, I16)]
                b.call(module.globals["single_row"], [*here, inner])
            with together:
                _tiles_of_a_share(b, (wide_x, weight, out_here, wide_weight), (now, outputs, inner), (first, last))
    b.ret_void()


def _tiles_of_a_share(b: ir.IRBuilder, memory: Sequence[Any], sizes: Sequence[Any], bounds: Sequence[Any]) -> None:
    wide_x, weight, out, wide_weight = memory
    rows, outputs, inner = sizes
    first, last = bounds
    functions = b.module.globals
    whole = b.add(first, b.mul(b.sdiv(b.sub(last, first), _int(TILE_OUTPUTS)), _int(TILE_OUTPUTS)))
    for start, stop, step in ((first, whole, TILE_OUTPUTS), (whole, last, 1)):
        with _loop(b, start, stop, step) as turn:
            source = _at(b, weight, b.mul(turn.index, inner), I16)
            b.call(functions["widen"], [source, wide_weight, b.mul(_int(step), inner)])
            target = _at(b, out, turn.index, I16)
            b.call(functions[f"rows_by_{step}"], [wide_x, wide_weight, target, rows, inner, outputs])


def _define_product(module: ir.Module) -> None:
    """product(...): hand every thread its share; the arguments are `Product`'s."""
    parallel = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I32, I32]), "GOMP_parallel")
    function, b = _function(module, "product", [I64] * 8)
    job = b.alloca(I64, 8)
    for number, value in enumerate(function.args):
        b.store(value, _at(b, job, _int(number), I64))
    share = module.globals["share"]
    with b.if_else(b.icmp_signed("==", function.args[7], _int(1))) as (alone, together):
        with alone:
            b.call(share, [job])
        with together:
            b.call(parallel, [share, job, b.trunc(function.args[7], I32), ir.Constant(I32, 0)])
    b.ret_void()
