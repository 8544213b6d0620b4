"""Sparse vectors as two sorted arrays: what sparse allreduces send, merge and return."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

from dist_ml.comm.buffer import Array
from dist_ml.errors import CommunicationError

MAX_LENGTH = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Entries:
    """Some elements of a vector: `indices` (int32, strictly ascending) and their `values` (float32
    or float64), same length.
    """

    indices: Array
    values: Array

    @classmethod
    def none(cls, dtype: DTypeLike) -> Self:
        return cls(np.empty(0, np.int32), np.empty(0, dtype))

    @classmethod
    def of(cls, dense: Array) -> Self:
        """The elements of `dense` that are not zero."""
        indices = np.flatnonzero(dense).astype(np.int32)
        return cls(indices, dense[indices])

    @property
    def size(self) -> int:
        return int(self.indices.size)

    def part(self, start: int, stop: int) -> "Entries":
        """The start-th to the (stop-1)-th entry: views."""
        return Entries(self.indices[start:stop], self.values[start:stop])

    def cut(self, boundaries: Sequence[int] | Array) -> "list[Entries]":
        """The entries with boundaries[i] <= index < boundaries[i + 1], for each i: views. The ends
        must enclose all indices.
        """
        at = np.searchsorted(self.indices, np.asarray(boundaries, dtype=np.int64))
        return [self.part(int(start), int(stop)) for start, stop in pairwise(at)]

    def where(self, mask: Array) -> "Entries":
        """The entries where `mask` is true: copies."""
        return Entries(self.indices[mask], self.values[mask])

    def dense(self, length: int) -> Array:
        """The whole vector of `length` elements."""
        vector = np.zeros(length, self.values.dtype)
        vector[self.indices] = self.values
        return vector


def concatenate(parts: Sequence[Entries]) -> Entries:
    """Entries of consecutive regions, in their order, as one."""
    assert parts, "at least one part tells the dtype"
    if len(parts) == 1:
        return parts[0]
    return Entries(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def magnitudes_of(values: Array) -> Array:
    """Absolute values, NaN as infinity: what is not a number counts as largest, so that no
    selection drops it unseen.
    """
    magnitudes: Array = np.fmin(np.abs(values), np.inf)
    return magnitudes


def largest(entries: Entries, k: int) -> tuple[Entries, Entries]:
    """The k entries of largest magnitude and the others, both in order; of equal ones those with
    the lowest indices are kept. NaN is larger than all numbers.
    """
    if entries.size <= k:
        return entries, entries.part(0, 0)
    mask = largest_mask(magnitudes_of(entries.values), k)
    return entries.where(mask), entries.where(~mask)


def largest_mask(magnitudes: Array, k: int) -> Array:
    """True at exactly k of the magnitudes (no NaN), the largest; ties go to the lowest
    positions.
    """
    if k <= 0:
        return np.zeros(magnitudes.size, dtype=bool)
    if k >= magnitudes.size:
        return np.ones(magnitudes.size, dtype=bool)
    kth = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
    mask: Array = magnitudes > kth
    missing = k - int(np.count_nonzero(mask))
    mask[np.flatnonzero(magnitudes == kth)[:missing]] = True
    return mask


def check_length(length: int) -> None:
    """`CommunicationError` where an index would not fit one 32-bit word."""
    if length > MAX_LENGTH:
        raise CommunicationError(
            f"a sparse allreduce indexes at most {MAX_LENGTH} elements with 32-bit words, not "
            f"{length}; exchange it in several buckets: sparse.overlap={-(-length // MAX_LENGTH)} "
            "or more"
        )
