"""The hot loops of the shared-memory reduction, compiled: one pass reads a line of every copy,
adds, and writes all copies.

Vector loads and stores of exactly one aligned cache line (64 bytes), instead of a scalar loop left
to the compiler's vectoriser: measured here on 2 x 25 M floats 5 ms against 8-10 ms, and 5 ms is
what reading and writing as many floats in place takes. LLVM splits the vectors for processors with
shorter ones. Importing this module imports numba; `plain_loops.py` is its reference.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

from dist_ml.compiled import compiled_loop

cgutils: Any = untyped_cgutils

LINE_BYTES = 64
FLAG_STRIDE = (
    LINE_BYTES // 8
)  # each flag has a line of its own, so that waiting for one doesn't slow another


def _load_acquire(_context: Any, flags: Any, index: Any) -> Any:
    """flags[index] (int64), read anew each time, and before everything that the program does after
    it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_element(context, builder, signature, arguments), "acquire", 8)

    return types.int64(flags, index), generate


def _store_release(_context: Any, flags: Any, index: Any, _value: Any) -> Any:
    """flags[index] = value (int64), after everything that the program did before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(
            arguments[2], _element(context, builder, signature, arguments), "release", 8
        )
        return context.get_dummy_value()

    return types.void(flags, index, types.int64), generate


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _reduce_line(
    _context: Any, copies: Any, rows: Any, _column: Any, _divisor: Any, _target: Any
) -> Any:
    """Reduce the aligned line at `column` of all rows of `copies`; see `plain_loops.reduce`.

    `rows` is the tuple of all row numbers: its type tells the compiler how many there are, and the
    loop is unrolled.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        vector = ir.VectorType(
            context.get_value_type(copies.dtype), LINE_BYTES * 8 // copies.dtype.bitwidth
        )
        stride = builder.sdiv(cgutils.unpack_tuple(builder, array.strides, 2)[0], array.itemsize)
        column, divisor, target = arguments[2:]

        def line(row: Any) -> Any:
            return builder.bitcast(
                builder.gep(array.data, [builder.add(builder.mul(row, stride), column)]),
                vector.as_pointer(),
            )

        lines = [line(column.type(row)) for row in range(rows.count)]
        total = builder.load(lines[0], align=LINE_BYTES)
        for other in lines[1:]:
            total = builder.fadd(total, builder.load(other, align=LINE_BYTES))
        divisors = ir.Constant(vector, ir.Undefined)
        for lane in range(vector.count):
            divisors = builder.insert_element(divisors, divisor, ir.IntType(32)(lane))
        total = builder.fdiv(total, divisors)
        with builder.if_else(builder.icmp_signed("<", target, target.type(0))) as (everywhere, one):
            with everywhere:
                for place in lines:
                    builder.store(total, place, align=LINE_BYTES)
            with one:
                builder.store(total, line(target), align=LINE_BYTES)
        return context.get_dummy_value()

    return types.void(copies, rows, types.int64, copies.dtype, types.int64), generate


load_acquire: Any = intrinsic(_load_acquire)
store_release: Any = intrinsic(_store_release)
reduce_line: Any = intrinsic(_reduce_line)


@compiled_loop()
def signal(flags: Any, index: int, epoch: int) -> None:
    """Set the flag at `index` to `epoch`, after all that this rank wrote before."""
    store_release(flags, index * FLAG_STRIDE, epoch)


@compiled_loop()
def reached(flags: Any, first: int, num_flags: int, epoch: int, spins: int) -> bool:
    """Whether all of `num_flags` flags from `first` on are at `epoch` or beyond, looking again up
    to `spins` times a flag.
    """
    for index in range(first, first + num_flags):
        left = spins
        while load_acquire(flags, index * FLAG_STRIDE) < epoch:
            left -= 1
            if left < 0:
                return False
    return True


@compiled_loop()
def _reduce_elements(
    copies: Any, rows: Any, start: int, stop: int, divisor: Any, target: int
) -> None:
    for column in range(start, stop):
        total = copies[0, column]
        for row in range(1, len(rows)):
            total += copies[row, column]
        total /= divisor
        for row in rows:
            if target < 0 or row == target:
                copies[row, column] = total


@compiled_loop()
def reduce(copies: Any, rows: Any, start: int, stop: int, divisor: Any, target: int) -> None:
    """`plain_loops.reduce`; `divisor` has the dtype of `copies`, whose rows begin on lines."""
    lanes = LINE_BYTES // copies.itemsize
    first = min(stop, (start + lanes - 1) // lanes * lanes)
    last = max(first, stop // lanes * lanes)
    _reduce_elements(copies, rows, start, first, divisor, target)
    for column in range(first, last, lanes):
        reduce_line(copies, rows, column, divisor, target)
    _reduce_elements(copies, rows, last, stop, divisor, target)


@compiled_loop()
def advance(
    stage: int,
    copies: Any,
    rows: Any,
    flags: Any,
    rank: int,
    epoch: int,
    start: int,
    stop: int,
    divisor: Any,
    spins: int,
) -> int:
    """`plain_loops.advance`: a whole small reduction in one call."""
    if stage == 0:
        signal(flags, rank, epoch)
        stage = 1
    if stage == 1 and reached(flags, 0, len(rows), epoch, spins):
        reduce(copies, rows, start, stop, divisor, -1)
        signal(flags, len(rows) + rank, epoch)
        stage = 2
    if stage == 2 and reached(flags, len(rows), len(rows), epoch, spins):
        stage = 3
    return stage
