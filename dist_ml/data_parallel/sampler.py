"""Deals samples to ranks by global id: any rank can say what any rank sees in any step.

The order of an epoch is a keyed permutation that is computed, not stored: two numbers (left, right)
of the bases a and b, with a b >= n, go through rounds that add a random function of one to the
other, modulo its base; each round can be undone, so the whole is a bijection of 0 … ab-1. An id >=
n is sent through again until it falls below n ("cycle walking"), which makes it one of 0 … n-1
(Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 3 and 4).
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dist_ml.counter_random import bits, stream
from dist_ml.partition import Range, block, blocks

Ids = NDArray[np.int64]

_NUM_ROUNDS = 8
_IDS_AHEAD = 4096


class GlobalSampler:
    """Cuts each epoch's permutation of 0 … num_samples-1 into global batches and those into the
    ranks' shares.

    The global batch of a step depends on (seed, epoch, step) alone. The last batch of an epoch
    holds what is left. `num_shards`: microbatches of all ranks together, cut out of the batch
    whatever the number of ranks, which divides that of shards (default: each rank's share is cut).
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        num_shards: int | None = None,
    ) -> None:
        assert min(num_samples, batch_size) >= 1, (num_samples, batch_size)
        self.num_samples = num_samples
        self.batch_size = min(batch_size, num_samples)
        self.seed = seed
        self.shuffle = shuffle
        self.num_shards = num_shards
        self._ahead: tuple[tuple[int, ...], list[Ids]] = ((), [])

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def batch_size_at(self, step: int) -> int:
        """Samples over all ranks in step 0 … steps_per_epoch-1 of an epoch: what the gradient's sum
        is divided by.
        """
        return self._positions(step).size

    def batch(self, epoch: int, step: int) -> Ids:
        """The sample ids of the global batch, in order."""
        positions = self._positions(step)
        return self._permuted(epoch, np.arange(positions.start, positions.stop, dtype=np.int64))

    def share(
        self,
        epoch: int,
        step: int,
        rank: int,
        size: int,
        microbatch: int = 0,
        num_microbatches: int = 1,
    ) -> Ids:
        """The ids of one microbatch of `rank`: a block of the rank's block of the global batch;
        empty where there are too few.
        """
        return self.microbatches(epoch, step, rank, size, num_microbatches)[microbatch]

    def microbatches(
        self, epoch: int, step: int, rank: int, size: int, num_microbatches: int
    ) -> list[Ids]:
        """The ids of each of them."""
        mine = self._shares_ahead(epoch, step, rank, size)
        return [mine[cut.slice] for cut in self.cuts(step, rank, size, num_microbatches)]

    def cuts(self, step: int, rank: int, size: int, num_microbatches: int) -> list[Range]:
        """Where the microbatches of `rank` lie in its share."""
        batch = self.batch_size_at(step)
        if self.num_shards is None:
            return blocks(block(batch, size, rank).size, num_microbatches)
        own = block(self.num_shards, size, rank)
        assert own.size == num_microbatches, (own, num_microbatches)
        shards = [block(batch, self.num_shards, shard) for shard in range(*own)]
        first = shards[0].start
        return [Range(shard.start - first, shard.stop - first) for shard in shards]

    def _shares_ahead(self, epoch: int, step: int, rank: int, size: int) -> Ids:
        """The rank's block of a global batch. Those of some steps are computed together and kept,
        because a small permutation costs as much as a larger one.
        """
        steps_ahead = max(1, _IDS_AHEAD // -(-self.batch_size // size))
        first = step - step % steps_ahead
        key = (epoch, first, rank, size)
        if self._ahead[0] != key:
            steps = range(first, min(first + steps_ahead, self.steps_per_epoch))
            parts = [self._share_positions(step, rank, size) for step in steps]
            places = np.concatenate(
                [np.arange(part.start, part.stop, dtype=np.int64) for part in parts]
            )
            bounds = np.cumsum([part.size for part in parts])[:-1]
            self._ahead = key, np.split(self._permuted(epoch, places), bounds)
        return self._ahead[1][step - first]

    def _share_positions(self, step: int, rank: int, size: int) -> Range:
        batch = self._positions(step)
        num_shards = self.num_shards or size
        own = block(num_shards, size, rank)
        first, last = (block(batch.size, num_shards, at) for at in (own.start, own.stop - 1))
        mine = Range(first.start, last.stop)
        return Range(batch.start + mine.start, batch.start + mine.stop)

    def _positions(self, step: int) -> Range:
        assert 0 <= step < self.steps_per_epoch, (step, self.steps_per_epoch)
        start = step * self.batch_size
        return Range(start, min(start + self.batch_size, self.num_samples))

    def _permuted(self, epoch: int, places: Ids) -> Ids:
        return permute(places, self.num_samples, self.seed, epoch) if self.shuffle else places


def permute(places: Ids, n: int, seed: int, epoch: int) -> Ids:
    """Where the permutation of 0 … n-1 keyed by (seed, epoch) sends each of `places`: new int64
    array, memory O(len(places)).
    """
    left_base, right_base = _bases(n)
    keys = _round_keys(seed, epoch)
    ids = _encipher(places.astype(np.uint64), left_base, right_base, keys)
    while left_base * right_base > n:
        outside = np.flatnonzero(ids >= n)
        if not len(outside):
            break
        ids[outside] = _encipher(ids[outside], left_base, right_base, keys)
    return ids.astype(np.int64)


def _bases(n: int) -> tuple[int, int]:
    """Nearly equal bases with the smallest product >= n that the larger one allows."""
    left = math.isqrt(n - 1) + 1
    return left, -(-n // left)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(stream("sampler", seed, epoch, number) for number in range(_NUM_ROUNDS))


def _encipher(
    ids: NDArray[np.uint64], left_base: int, right_base: int, keys: tuple[int, ...]
) -> NDArray[np.uint64]:
    bases = np.uint64(left_base), np.uint64(right_base)
    right, left = np.divmod(ids, bases[0])
    halves = [left, right]
    for number, key in enumerate(keys):
        side = number % 2
        random = bits(key, halves[1 - side])
        random >>= np.uint64(1)  # room for the sum
        random += halves[side]
        halves[side] = np.remainder(random, bases[side], out=random)
    return halves[0] + halves[1] * bases[0]
