"""What stands between the contractions of an encoder layer, each stretch as one compiled loop over
rows: everything between its inputs and outputs stays in the cache. Needs numba.

float32 arrays [rows, width]; a dropout's mask is a function of (key, row, column) and is made again
in the backward pass, not stored. Each loop has its formula in `EncoderLayer`, against which
tests/unit/test_bench_dataflow.py holds it.
"""

import numpy as np

from dist_ml.compiled import compiled_loop

_compile = compiled_loop(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# exp(x) = 2^n exp(r) with r in +-ln(2)/2, and exp(r) by its series: to 2e-7 of it, in loops that
# the compiler can vectorise, which calls of the library's exp are not.
_LOG2_E = np.float32(1.442695)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444e-4)
_SMALLEST = np.float32(-87.0)  # whose exp is a normal number
_TERMS = tuple(np.float32(1 / n) for n in (720, 120, 24, 6, 2, 1, 1))
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@_compile
def factors(key, row, threshold, scale, out):  # type: ignore[no-untyped-def]
    """A row of a dropout: 0 where the 32-bit number of an element is below `threshold`, else
    `scale`. Numbers: a counter through two rounds of multiply and shift.
    """
    first = row * out.size
    for j in range(out.size):
        x = np.uint32(first + j) ^ key
        x = np.uint32((x ^ (x >> np.uint32(16))) * _FIRST)
        x = np.uint32((x ^ (x >> np.uint32(15))) * _SECOND)
        x = np.uint32(x ^ (x >> np.uint32(16)))
        out[j] = scale if x >= threshold else np.float32(0)


@_compile
def softmax(scores, factor, drop, shares, dropped):  # type: ignore[no-untyped-def]
    """shares = softmax(factor scores), dropped = their dropout. `drop`: key, threshold, scale."""
    key, threshold, scale = drop
    rows, width = scores.shape
    kept = np.empty(width, np.float32)
    powers = np.empty(width, np.int32)
    doubled = powers.view(np.float32)
    for row in range(rows):
        x, y, z = scores[row], shares[row], dropped[row]
        largest = x[0]
        for j in range(width):
            largest = max(largest, x[j])
        for j in range(width):
            value = max(factor * (x[j] - largest), _SMALLEST)
            whole = np.floor(value * _LOG2_E + np.float32(0.5))
            powers[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            r = value - whole * _LN2_HIGH - whole * _LN2_LOW
            term = _TERMS[0]
            term = term * r + _TERMS[1]
            term = term * r + _TERMS[2]
            term = term * r + _TERMS[3]
            term = term * r + _TERMS[4]
            term = term * r + _TERMS[5]
            y[j] = term * r + _TERMS[6]
        total = np.float32(0)
        for j in range(width):
            y[j] *= doubled[j]
            total += y[j]
        share = np.float32(1) / total
        factors(key, row, threshold, scale, kept)
        for j in range(width):
            y[j] *= share
            z[j] = y[j] * kept[j]


@_compile
def softmax_backward(gradient, factor, drop, shares):  # type: ignore[no-untyped-def]
    """In place: the gradient of `dropped` becomes that of `scores`."""
    key, threshold, scale = drop
    rows, width = gradient.shape
    kept = np.empty(width, np.float32)
    for row in range(rows):
        g, y = gradient[row], shares[row]
        factors(key, row, threshold, scale, kept)
        total = np.float32(0)
        for j in range(width):
            g[j] *= kept[j]
            total += g[j] * y[j]
        for j in range(width):
            g[j] = factor * y[j] * (g[j] - total)


@_compile
def add_norm(x, residual, drop, weight, bias, epsilon, mean, inverse, summed, out):  # type: ignore[no-untyped-def]
    """summed = residual + dropout(x), out = layer norm of it; `mean` and `inverse` [rows]."""
    key, threshold, scale = drop
    rows, width = x.shape
    kept = np.empty(width, np.float32)
    for row in range(rows):
        a, b, z, y = x[row], residual[row], summed[row], out[row]
        factors(key, row, threshold, scale, kept)
        total = np.float32(0)
        for j in range(width):
            z[j] = b[j] + a[j] * kept[j]
            total += z[j]
        middle = total / np.float32(width)
        squares = np.float32(0)
        for j in range(width):
            squares += (z[j] - middle) * (z[j] - middle)
        scaled = np.float32(1) / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            y[j] = (z[j] - middle) * scaled * weight[j] + bias[j]
        mean[row], inverse[row] = middle, scaled


@_compile
def add_norm_backward(  # type: ignore[no-untyped-def]
    gradient, drop, weight, mean, inverse, summed, d_summed, d_x, d_weight, d_bias
):
    """Gradients of x, of the residual (d_summed), and sums for weight and bias."""
    key, threshold, scale = drop
    rows, width = gradient.shape
    kept = np.empty(width, np.float32)
    for row in range(rows):
        g, z, d, dx = gradient[row], summed[row], d_summed[row], d_x[row]
        middle, scaled = mean[row], inverse[row]
        factors(key, row, threshold, scale, kept)
        first, second = np.float32(0), np.float32(0)
        for j in range(width):
            normed, own = (z[j] - middle) * scaled, g[j] * weight[j]
            first += own
            second += own * normed
            d_weight[j] += g[j] * normed
            d_bias[j] += g[j]
        first /= np.float32(width)
        second /= np.float32(width)
        for j in range(width):
            normed = (z[j] - middle) * scaled
            d[j] = scaled * (g[j] * weight[j] - first - normed * second)
            dx[j] = d[j] * kept[j]


@_compile
def relu_dropout(x, drop):  # type: ignore[no-untyped-def]
    """In place."""
    key, threshold, scale = drop
    rows, width = x.shape
    kept = np.empty(width, np.float32)
    for row in range(rows):
        a = x[row]
        factors(key, row, threshold, scale, kept)
        for j in range(width):
            a[j] = max(a[j], np.float32(0)) * kept[j]


@_compile
def relu_dropout_backward(gradient, scale, out):  # type: ignore[no-untyped-def]
    """In place: what is above zero in `out` was let through, times `scale`."""
    rows, width = gradient.shape
    for row in range(rows):
        g, y = gradient[row], out[row]
        for j in range(width):
            g[j] = scale * g[j] if y[j] > np.float32(0) else np.float32(0)
