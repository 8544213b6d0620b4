"""What is not finite in a sparse sum comes out not finite, on all ranks alike."""

import numpy as np
import pytest
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Entries, Settings, SparseSum
from dist_ml.comm.sparse.entries import largest, magnitudes_of
from dist_ml.comm.sparse.quantise import BUCKET, FORMATS, qsgd_decode, qsgd_encode

N, K = 400, 40


def entries(rank: int) -> Entries:
    random = np.random.default_rng(rank)
    indices = np.sort(random.choice(N, K, replace=False)).astype(np.int32)
    return Entries(indices, random.standard_normal(K).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        *(("plain", bad) for bad in (np.nan, np.inf, -np.inf)),
        *(("int4", bad) for bad in (np.nan, np.inf, -np.inf)),
        ("fp32", np.nan),
        ("bf16", np.inf),
    ],
)
@pytest.mark.parametrize("name", SPARSE_ALLREDUCES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_bad_entry_of_one_rank_is_seen_by_all(name: str, values: str, bad: float) -> None:
    for size in (1, 2, 5):

        def body(comm: Communicator) -> list[SparseSum]:
            settings = Settings(values=values, threshold_steps=2)
            variant = SPARSE_ALLREDUCES[name].make(comm, N, settings)
            own = entries(comm.rank)
            poisoned = Entries(own.indices, own.values.copy())
            if comm.rank == comm.size - 1:
                poisoned.values[7] = bad
            return [variant.reduce(step, K) for step in (own, poisoned, own, own)]

        results = run_ranks(size, body)
        for step, finite in enumerate([True, False, True, True]):
            totals = [result[step].to_dense(N) for result in results]
            assert np.isfinite(totals[0]).all() == finite, (size, step)
            for total in totals[1:]:
                np.testing.assert_array_equal(total, totals[0])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_qsgd_shows_what_is_not_finite_and_spares_other_buckets(bits: int, bad: float) -> None:
    values = np.ones(3 * BUCKET, np.float32)
    values[BUCKET + 5] = bad
    coded = qsgd_encode(values, bits, np.random.default_rng(0))
    seen = qsgd_decode(coded, bits, values.size, "float32")
    assert not np.isfinite(seen[BUCKET + 5])
    np.testing.assert_array_equal(seen[:BUCKET], 1)
    np.testing.assert_array_equal(seen[2 * BUCKET :], 1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_formats_decode_what_the_sender_says_they_do(name: str, bad: float) -> None:
    values = np.random.default_rng(0).standard_normal(2 * BUCKET + 3).astype(np.float32)
    values[2] = bad
    coded, seen = FORMATS[name].encode(values)
    decoded = FORMATS[name].decode(coded, values.size, "float32")
    np.testing.assert_array_equal(decoded, seen)
    assert not np.isfinite(decoded[2])
    assert np.isfinite(decoded[BUCKET:]).all()


def test_nan_is_larger_than_every_number() -> None:
    values = np.array([1, np.nan, -np.inf, 3, np.nan], np.float32)
    assert magnitudes_of(values).tolist() == [1, np.inf, np.inf, 3, np.inf]
    kept, dropped = largest(Entries(np.arange(5, dtype=np.int32), values), 3)
    assert kept.indices.tolist() == [1, 2, 4]
    assert dropped.values.tolist() == [1, 3]
