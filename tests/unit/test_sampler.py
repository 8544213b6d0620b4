"""The dealt samples: every id once an epoch, the same for any number of ranks, in an order that
looks random.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.data_parallel.sampler import GlobalSampler, permute


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@given(st.integers(1, 3000), st.data())
def test_the_permutation_is_computed_place_by_place(n: int, data: st.DataObject) -> None:
    whole = permute(np.arange(n), n, 5, 2)
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    assert np.array_equal(permute(places, n, 5, 2), whole[places])


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 + 11, 2**53 + 5, 2**62])
def test_huge_sets_stay_in_range_without_collisions(n: int) -> None:
    places = np.unique(np.linspace(0, n - 1, 5000).astype(np.int64).clip(0, n - 1))
    ids = permute(places, n, 0, 0)
    assert ids.min() >= 0
    assert ids.max() < n
    assert len(np.unique(ids)) == len(places)


@given(
    st.integers(1, 200),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
)
def test_shares_of_all_ranks_and_microbatches_are_the_batch(
    n: int, batch: int, size: int, micro: int, shuffle: bool
) -> None:
    sampler = GlobalSampler(n, batch, seed=3, shuffle=shuffle)
    steps = range(sampler.steps_per_epoch)
    shares = [  # rank by rank, as ranks ask
        [
            [sampler.share(1, step, rank, size, part, micro) for part in range(micro)]
            for step in steps
        ]
        for rank in range(size)
    ]
    batches = [sampler.batch(1, step) for step in steps]
    for step, whole in enumerate(batches):
        dealt = [of_rank[step] for of_rank in shares]
        lengths = [sum(map(len, parts)) for parts in dealt]
        assert np.array_equal(np.concatenate(list(itertools.chain(*dealt))), whole)
        assert max(lengths) - min(lengths) <= 1
        assert sampler.batch_size_at(step) == len(whole)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    assert all(len(ids) == sampler.batch_size for ids in batches[:-1])


@pytest.mark.parametrize("micro", [1, 3])
def test_a_rank_computes_each_of_its_ids_once_an_epoch(
    micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many micro-batches a step has: computed one by one, they would cost more than a step
    of a small model.
    """
    computed: list[int] = []
    monkeypatch.setattr(
        "dist_ml.data_parallel.sampler.permute",
        lambda places, *of: (computed.append(len(places)), permute(places, *of))[1],
    )
    sampler = GlobalSampler(10_000, 64, seed=0)
    for step in range(sampler.steps_per_epoch):
        for part in range(micro):
            sampler.share(0, step, 1, 2, part, micro)
    assert sum(computed) == 32 * 156 + 8
    assert len(computed) <= 3


def test_without_shuffling_the_order_is_that_of_the_ids() -> None:
    assert GlobalSampler(10, 4, 0, shuffle=False).batch(3, 2).tolist() == [8, 9]


def test_one_sampler_tells_the_share_of_any_rank_in_any_order() -> None:
    asked = [(rank, size, step) for size in (1, 2, 3) for rank in range(size) for step in (1, 0)]
    one = GlobalSampler(10, 4, seed=1)
    for rank, size, step in [*asked, *reversed(asked)]:
        alone = GlobalSampler(10, 4, seed=1).share(2, step, rank, size)
        assert np.array_equal(one.share(2, step, rank, size), alone)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    sampler = GlobalSampler(5, 100, 0)
    assert sampler.steps_per_epoch == 1
    assert sorted(sampler.batch(0, 0)) == [0, 1, 2, 3, 4]


def test_seed_and_epoch_give_other_orders() -> None:
    orders = {
        tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_every_id_is_equally_likely_at_every_place_and_distance() -> None:
    n, epochs = 31, 1500
    orders = np.array([permute(np.arange(n), n, 8, epoch) for epoch in range(epochs)])
    at_place = np.array([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    distances = np.bincount((orders[:, 1] - orders[:, 0]) % n, minlength=n)[1:]
    assert abs(_chi_square_z(at_place, (n - 1) ** 2)) < 4
    assert abs(_chi_square_z(distances, n - 2)) < 4


def test_small_permutations_are_equally_likely() -> None:
    orders = [tuple(permute(np.arange(4), 4, 1, epoch)) for epoch in range(2400)]
    observed = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    assert abs(_chi_square_z(observed, 23)) < 4


def _chi_square_z(observed: np.ndarray, degrees: int) -> float:
    """How many standard deviations the chi-square statistic against equal counts lies from what
    chance gives.
    """
    expected = observed.sum() / observed.size
    return float((((observed - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))
