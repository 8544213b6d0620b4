"""Ascending indices in the fewest bytes of three forms: as they are, as gaps in base 128, or as a
bitmap.

At density d the mean gap is 1/d: plain takes 4 bytes an index, gaps 1 (d above about 1/50) to 2, a
bitmap 1/(8 d).
"""

from functools import cache
from types import ModuleType

import numpy as np

from dist_ml import compiled
from dist_ml.comm.buffer import Array

PLAIN, GAPS, BITMAP = 0, 1, 2


def encode(indices: Array) -> tuple[int, int, Array]:
    """The form that is smallest, the first index, and the coded bytes (uint8)."""
    if not indices.size:
        return PLAIN, 0, np.empty(0, np.uint8)
    first, span = int(indices[0]), int(indices[-1]) - int(indices[0]) + 1
    bitmap_bytes = -(-span // 8)
    gap_bytes = indices.size if bitmap_bytes < indices.size else _gap_bytes(indices)
    if bitmap_bytes <= min(gap_bytes, 4 * indices.size):
        flags = np.zeros(span, np.uint8)
        flags[indices - first] = 1
        return BITMAP, first, np.packbits(flags, bitorder="little")
    if gap_bytes < 4 * indices.size:
        return GAPS, first, _gaps().encode(indices, first, gap_bytes)
    return PLAIN, first, np.ascontiguousarray(indices).view(np.uint8)


def decode(form: int, first: int, num: int, coded: Array) -> Array:
    """The `num` indices (int32) that were coded."""
    if form == BITMAP:
        return (np.flatnonzero(np.unpackbits(coded, bitorder="little")) + first).astype(np.int32)
    if form == GAPS:
        return _gaps().decode(coded, first, num)
    return coded[: 4 * num].copy().view(np.int32)


def _gap_bytes(indices: Array) -> int:
    gaps = np.diff(indices)
    return int(indices.size + sum(np.count_nonzero(gaps >= 1 << bits) for bits in (7, 14, 21, 28)))


class PlainGaps:
    """The plain reference of the compiled gap coder: one vector operation a digit."""

    @staticmethod
    def encode(indices: Array, first: int, num_bytes: int) -> Array:
        gaps: Array = np.diff(indices.astype(np.int64), prepend=first)
        lengths: Array = np.ones(gaps.size, np.int64)
        for bits in (7, 14, 21, 28):
            lengths += gaps >= 1 << bits
        starts = np.cumsum(lengths) - lengths
        coded = np.zeros(num_bytes, np.uint8)
        for digit in range(int(lengths.max(initial=0))):
            here = lengths > digit
            more = (lengths[here] > digit + 1).astype(np.int64) << 7
            coded[starts[here] + digit] = (gaps[here] >> 7 * digit) & 127 | more
        return coded

    @staticmethod
    def decode(coded: Array, first: int, num: int) -> Array:
        ends = np.flatnonzero(coded < 128)[:num]
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        owner = np.repeat(np.arange(num), ends - starts + 1)
        digits = np.arange(owner.size) - starts[owner]
        shifted = (coded[: owner.size].astype(np.int64) & 127) << 7 * digits
        return (first + np.cumsum(np.add.reduceat(shifted, starts))).astype(np.int32)


class CompiledGaps:
    """Gap coding in one compiled pass."""

    def __init__(self, loops: ModuleType) -> None:
        self._loops = loops

    def encode(self, indices: Array, first: int, num_bytes: int) -> Array:
        coded = np.empty(num_bytes, np.uint8)
        written = self._loops.encode_gaps(indices, first, coded)
        assert written == num_bytes, (written, num_bytes)
        return coded

    def decode(self, coded: Array, first: int, num: int) -> Array:
        indices = np.empty(num, np.int32)
        self._loops.decode_gaps(coded, first, indices)
        return indices


@cache
def _gaps() -> PlainGaps | CompiledGaps:
    if not compiled.available():
        return PlainGaps()
    from dist_ml.comm.sparse import compiled_loops

    return CompiledGaps(compiled_loops)
