"""The fused selection pass, compiled; imported only where numba is installed.

    for each block of 64 elements:      one vector operation a line, as wide as the processor has
        total = residual + scale * gradient
        residual = total where that is finite, else as it was
        hits = bits of not (|total| < threshold)
        while hits:                         rare at 1 %: about every second block has one
            emit index and value, clear residual

It reads two arrays and writes one, as `torch.add` does, and the memory is its limit. NaN passes
`not (x < t)`, so whatever is not finite is among the few hits, where looking for it costs nothing.
"""

# ruff: noqa: ARG001 - numba prescribes the signatures of what it calls
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from dist_ml.comm.buffer import Array
from dist_ml.compiled import compiled_loop

BLOCK = 64
_INT32, _MASK = ir.IntType(32), ir.IntType(BLOCK)


_intrinsic: Callable[..., Any] = intrinsic
_declare: Callable[..., Any] = cgutils.get_or_insert_function


def _vector_type(context: Any, array_type: Any) -> Any:
    return ir.VectorType(context.get_data_type(array_type.dtype), BLOCK)


def _block_pointer(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(
        builder.gep(data, [start]), _vector_type(context, array_type).as_pointer()
    )


def _splat(builder: Any, vector: Any, scalar: Any) -> Any:
    lane = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(
        lane,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.VectorType(_INT32, BLOCK), [0] * BLOCK),
    )


def _hits(builder: Any, vector: Any, values: Any, threshold: Any) -> Any:
    """One bit a lane: not (|value| < threshold)."""
    above = builder.fcmp_unordered(
        ">=", _magnitudes(builder, vector, values), _splat(builder, vector, threshold)
    )
    return builder.bitcast(above, _MASK)


def _magnitudes(builder: Any, vector: Any, values: Any) -> Any:
    name = f"llvm.fabs.v{BLOCK}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    return builder.call(_declare(builder.module, ir.FunctionType(vector, [vector]), name), [values])


def _alignment(array_type: Any) -> int:
    return int(array_type.dtype.bitwidth) // 8


@_intrinsic
def _test_block(typing: Any, values: Any, start: Any, threshold: Any) -> Any:
    """The hits among values[start : start + 64]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, vector = signature.args[0], _vector_type(context, signature.args[0])
        loaded = builder.load(
            _block_pointer(context, builder, kind, arguments[0], arguments[1]),
            align=_alignment(kind),
        )
        return _hits(builder, vector, loaded, arguments[2])

    return types.uint64(values, start, threshold), generate


@_intrinsic
def _add_block(
    typing: Any,
    addend: Any,
    total: Any,
    start: Any,
    addend_scale: Any,
    total_scale: Any,
    threshold: Any,
) -> Any:
    """total = total_scale * total + addend_scale * addend over 64 elements from `start`, where that
    is finite; the hits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, vector = signature.args[1], _vector_type(context, signature.args[1])
        align = _alignment(kind)
        source = builder.load(
            _block_pointer(context, builder, signature.args[0], arguments[0], arguments[2]),
            align=align,
        )
        target = _block_pointer(context, builder, kind, arguments[1], arguments[2])
        scaled = builder.fmul(source, _splat(builder, vector, arguments[3]))
        before = builder.load(target, align=align)
        summed = builder.fadd(builder.fmul(before, _splat(builder, vector, arguments[4])), scaled)
        infinity = _splat(builder, vector, ir.Constant(vector.element, float("inf")))
        finite = builder.fcmp_ordered("<", _magnitudes(builder, vector, summed), infinity)
        builder.store(builder.select(finite, summed, before), target, align=align)
        return _hits(builder, vector, summed, arguments[5])

    return types.uint64(addend, total, start, addend_scale, total_scale, threshold), generate


@_intrinsic
def _lowest_bit(typing: Any, mask: Any) -> Any:
    """The position of the lowest set bit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


_compile = compiled_loop(boundscheck=False, error_model="numpy")


@_compile
def _emit(
    hits: Any, start: Any, residual: Any, indices: Any, values: Any, count: Any, offset: Any
) -> Any:
    """Move the hits of one block from the residual to the output; the new count."""
    while hits:
        at = start + np.int64(_lowest_bit(hits))
        indices[count] = at + offset
        values[count] = residual[at]
        residual[at] = 0
        count += 1
        hits &= hits - np.uint64(1)
    return count


@_compile
def _emit_rest(
    start: Any, residual: Any, threshold: Any, indices: Any, values: Any, count: Any, offset: Any
) -> Any:
    """The last, incomplete block. Returns the count, and whether something had no room."""
    for at in range(start, residual.size):
        if not abs(residual[at]) < threshold:
            if count == indices.size:
                return count, True
            indices[count], values[count] = at + offset, residual[at]
            residual[at] = 0
            count += 1
    return count, False


@_compile
def _any_bad(hits: Any, start: Any, addend: Any, scale: Any, total: Any) -> Any:
    """Is a hit's sum not finite? Its total is then as it was before, and adding again gives the
    same.
    """
    while hits:
        at = start + np.int64(_lowest_bit(hits))
        if not np.isfinite(total[at] + scale * addend[at]):
            return True
        hits &= hits - np.uint64(1)
    return False


@_compile
def _add_rest(start: Any, addend: Any, total: Any, addend_scale: Any, total_scale: Any) -> Any:
    """The last, incomplete block of `_add_block`; is a sum not finite?"""
    bad = False
    for at in range(start, total.size):
        summed = total_scale * total[at] + addend_scale * addend[at]
        if np.isfinite(summed):
            total[at] = summed
        else:
            bad = True
    return bad


@_compile
def accumulate(
    gradient: Any, scale: Any, residual: Any, threshold: Any, indices: Any, values: Any, offset: Any
) -> tuple[int, bool, bool]:
    """residual += scale * gradient, and `sweep`, in one pass; the third value returned: was a sum
    not finite, and left out?
    """
    count, full, bad, one = 0, False, False, residual.dtype.type(1)
    blocks = residual.size // BLOCK
    for block in range(blocks):
        start = block * BLOCK
        hits = _add_block(gradient, residual, start, scale, one, threshold)
        if hits:
            bad = bad or _any_bad(hits, start, gradient, scale, residual)
            if count + BLOCK <= indices.size:
                count = _emit(hits, start, residual, indices, values, count, offset)
            else:
                full = True
    bad |= _add_rest(blocks * BLOCK, gradient, residual, scale, one)
    count, rest_full = _emit_rest(
        blocks * BLOCK, residual, threshold, indices, values, count, offset
    )
    return count, full or rest_full, bad


@_compile
def accumulate_momentum(
    gradient: Any,
    scale: Any,
    velocity: Any,
    momentum: Any,
    residual: Any,
    threshold: Any,
    indices: Any,
    values: Any,
    offset: Any,
) -> tuple[int, bool, bool]:
    """velocity = momentum * velocity + scale * gradient; residual += velocity; and `sweep`, in one
    pass, as `accumulate`.
    """
    count, full, bad, one, infinity = (
        0,
        False,
        False,
        residual.dtype.type(1),
        residual.dtype.type(np.inf),
    )
    blocks = residual.size // BLOCK
    for block in range(blocks):
        start = block * BLOCK
        bad |= _add_block(gradient, velocity, start, scale, momentum, infinity) != 0
        hits = _add_block(velocity, residual, start, one, one, threshold)
        if hits:
            bad = bad or _any_bad(hits, start, velocity, one, residual)
            if count + BLOCK <= indices.size:
                count = _emit(hits, start, residual, indices, values, count, offset)
            else:
                full = True
    bad |= _add_rest(blocks * BLOCK, gradient, velocity, scale, momentum)
    bad |= _add_rest(blocks * BLOCK, velocity, residual, one, one)
    count, rest_full = _emit_rest(
        blocks * BLOCK, residual, threshold, indices, values, count, offset
    )
    return count, full or rest_full, bad


@_compile
def sweep(
    residual: Any, threshold: Any, indices: Any, values: Any, offset: Any
) -> tuple[int, bool, bool]:
    """Move what is not below the threshold to the output, in order, while there is room; the count,
    did some stay, False.
    """
    count, full = 0, False
    blocks = residual.size // BLOCK
    for block in range(blocks):
        hits = _test_block(residual, block * BLOCK, threshold)
        if hits:
            if count + BLOCK <= indices.size:
                count = _emit(hits, block * BLOCK, residual, indices, values, count, offset)
            else:
                full = True
    count, rest_full = _emit_rest(
        blocks * BLOCK, residual, threshold, indices, values, count, offset
    )
    return count, full or rest_full, False


@_compile
def add_at(residual: Any, indices: Any, values: Any) -> None:
    """residual[indices] += values where that is finite; indices may repeat."""
    for i in range(indices.size):
        total = residual[indices[i]] + values[i]
        if np.isfinite(total):
            residual[indices[i]] = total


def warm_up(dtype: Any) -> Array:
    """Compile, or load from the cache, every pass for one dtype; returns the scratch it ran on."""
    scratch, scalar = np.zeros(2 * BLOCK, dtype), np.dtype(dtype).type(1)
    indices, values = np.empty(BLOCK, np.int32), np.empty(BLOCK, dtype)
    accumulate(scratch.copy(), scalar, scratch, scalar, indices, values, 0)
    accumulate_momentum(
        scratch.copy(), scalar, scratch.copy(), scalar, scratch, scalar, indices, values, 0
    )
    sweep(scratch, scalar, indices, values, 0)
    add_at(scratch, indices[:0], values[:0])
    return scratch
