"""The compiled inner loops of sparse merging and coding; imported only where numba is installed."""

from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.compiled import compiled_loop


def merge_lists(
    left_indices: Array, left_values: Array, right_indices: Array, right_values: Array
) -> tuple[Array, Array]:
    """The sorted union of two sorted lists; values with the same index are added, left + right."""
    room = left_indices.size + right_indices.size
    indices, values = np.empty(room, np.int32), np.empty(room, left_values.dtype)
    size = _merge(left_indices, left_values, right_indices, right_values, indices, values)
    return indices[:size], values[:size]


@compiled_loop(boundscheck=False)
def _merge(
    left_indices: Any,
    left_values: Any,
    right_indices: Any,
    right_values: Any,
    indices: Any,
    values: Any,
) -> Any:
    """Both heads are written at each step and only the counters depend on the comparison, so that
    there is no branch to guess.
    """
    i, j, out = 0, 0, 0
    num_left, num_right = left_indices.size, right_indices.size
    while i < num_left and j < num_right:
        left, right = left_indices[i], right_indices[j]
        take_left, take_right = left <= right, right <= left
        indices[out] = left if take_left else right
        value = left_values[i] if take_left else right_values[j]
        values[out] = left_values[i] + right_values[j] if left == right else value
        i += take_left
        j += take_right
        out += 1
    while i < num_left:
        indices[out], values[out] = left_indices[i], left_values[i]
        i, out = i + 1, out + 1
    while j < num_right:
        indices[out], values[out] = right_indices[j], right_values[j]
        j, out = j + 1, out + 1
    return out


@compiled_loop(boundscheck=False)
def encode_gaps(indices: Any, start: Any, coded: Any) -> int:
    """Gaps between ascending indices in base 128, low digits first, the top bit set on all but the
    last; returns the bytes.
    """
    previous, out = start, 0
    for i in range(indices.size):
        gap = indices[i] - previous
        previous = indices[i]
        while gap >= 128:
            coded[out] = (gap & 127) | 128
            gap >>= 7
            out += 1
        coded[out] = gap
        out += 1
    return out


@compiled_loop(boundscheck=False)
def decode_gaps(coded: Any, start: Any, indices: Any) -> None:
    """The indices back from `encode_gaps`."""
    at, previous = 0, start
    for i in range(indices.size):
        gap, shift = np.int64(0), 0
        while coded[at] >= 128:
            gap |= (np.int64(coded[at]) & 127) << shift
            shift += 7
            at += 1
        previous += gap | (np.int64(coded[at]) << shift)
        at += 1
        indices[i] = previous


@compiled_loop(boundscheck=False)
def qsgd_pack(
    values: Any, scales: Any, bits: Any, lane_bits: Any, bucket_bits: Any, seed: Any, packed: Any
) -> None:
    """Sign and level of each value, rounded up with the probability of what is left, 2^lane_bits to
    a byte; SplitMix64 flips.

    Places are found by shifts: a division an element would cost more than all the rest.
    """
    top, lane = (1 << (bits - 1)) - 1, (1 << lane_bits) - 1
    for i in range(values.size):
        word = seed + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        coin = np.float32((word ^ (word >> np.uint64(31))) >> np.uint64(40)) * np.float32(2.0**-24)
        scale = scales[i >> bucket_bits]
        level = 0
        if values[i] != 0:
            level = min(int(abs(values[i]) / scale * top + coin), top)
        signed = top - level if values[i] < 0 else top + level
        packed[i >> lane_bits] |= np.uint8(signed << ((i & lane) * bits))


@compiled_loop(boundscheck=False)
def qsgd_unpack(
    packed: Any, steps: Any, bits: Any, lane_bits: Any, bucket_bits: Any, values: Any
) -> None:
    """The values back, on the grid of each bucket's step."""
    top, mask, lane = (1 << (bits - 1)) - 1, (1 << bits) - 1, (1 << lane_bits) - 1
    for i in range(values.size):
        level = (packed[i >> lane_bits] >> ((i & lane) * bits)) & mask
        values[i] = np.float32(np.int64(level) - top) * steps[i >> bucket_bits]
