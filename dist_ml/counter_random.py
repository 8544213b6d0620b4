"""Counter-based randomness: every number is a pure function of a key and a counter, so no generator
has a state to share.

Which rank asks, in which order and in which grouping can't matter. Dropout, samplers, synthetic
data and initial weights draw from here. The generator is SplitMix64 read by position: output i of
state s is mix(s + (i + 1) * golden), with Stafford's variant 13 of the mixing function (Steele,
Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, section 4). Integer
arithmetic only: the same bits on every machine. Statistical quality, not cryptographic.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Words = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_WORDS_IN_CACHE = 1 << 14


def stream(purpose: str, *numbers: int) -> int:
    """The 64-bit key of an independent stream of numbers, named by what it is for and by any
    integers (seed, epoch, layer …).
    """
    name = ":".join([purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def bits(key: int, counters: NDArray[Any]) -> Words:
    """One random 64-bit word for each counter: a new uint64 array of the shape of `counters` (int64
    or uint64).
    """
    words = counters.astype(np.uint64)
    words *= np.uint64(_GOLDEN)
    words += np.uint64((key + _GOLDEN) & _MASK)
    return _mix(words, np.empty_like(words))


def uniform(key: int, counters: NDArray[Any]) -> NDArray[np.float64]:
    """One float64 in [0, 1), a multiple of 2^-53, for each counter."""
    numbers = (bits(key, counters) >> np.uint64(11)).astype(np.float64)
    numbers *= 2.0**-53
    return numbers


def rows(keys: Words, width: int) -> Words:
    """Row i holds the first `width` words of the generator whose state is `keys[i]`: a new uint64
    array [len(keys), width].
    """
    steps = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    words = np.empty((len(keys), width), np.uint64)
    num_rows = max(1, _WORDS_IN_CACHE // max(1, width))
    scratch = np.empty((num_rows, width), np.uint64)
    for start in range(
        0, len(keys), num_rows
    ):  # a few rows at a time: all passes of the mixing stay in the cache
        part = words[start : start + num_rows]
        np.add(keys[start : start + num_rows, None], steps, out=part)
        _mix(part, scratch[: len(part)])
    return words


def lanes(keys: Words, width: int, dtype: DTypeLike) -> NDArray[Any]:
    """Like `rows`, but cut into smaller numbers: [len(keys), width] of an unsigned `dtype`, all of
    its values equally likely.
    """
    per_word = 8 // np.dtype(dtype).itemsize
    words = rows(keys, -(-width // per_word))
    return words.astype("<u8", copy=False).view(np.dtype(dtype).newbyteorder("<"))[:, :width]


def _mix(words: Words, scratch: Words) -> Words:
    """Turn each word into a random-looking one, in place; a bijection of 64-bit words."""
    words ^= np.right_shift(words, _SHIFT_1, out=scratch)
    words *= _MULTIPLIER_1
    words ^= np.right_shift(words, _SHIFT_2, out=scratch)
    words *= _MULTIPLIER_2
    words ^= np.right_shift(words, _SHIFT_3, out=scratch)
    return words
