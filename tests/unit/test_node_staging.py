"""Collectives through a node's memory, chunk by chunk: on threads that share it as processes do,
against what numpy makes of the ranks' values.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_world import run_ranks

from dist_ml import compiled
from dist_ml.comm import node_staging as staging
from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.node_staging import NodeStaging, node_staging

pytestmark = pytest.mark.skipif(not compiled.available(), reason="needs numba")


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> object:
    """A page, so that a few thousand elements are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "CHUNK_BYTES", 4096)
        patch.setattr(staging, "LEAST_BYTES", 8)
        yield


def values(rank: int, call: int, n: int, dtype: str) -> Array:
    """Whole numbers, whose sums are exact."""
    numbers: Array = np.random.default_rng([rank, call]).integers(-50, 50, n).astype(dtype)
    return numbers


CALLS = ("allreduce", "allgather", "in place", "reduce_scatter")


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(2, 3),
    calls=st.lists(
        st.tuples(
            st.sampled_from(CALLS),
            st.integers(1, 3000),
            st.sampled_from(["float32", "float64"]),
            st.sampled_from([1, 4]),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_calls_one_after_the_other(size: int, calls: list[tuple[str, int, str, int]]) -> None:
    """Also where one leaves its chunks to the next."""

    def body(comm: Communicator) -> None:
        node = NodeStaging(comm)
        for number, (call, n, dtype, divisor) in enumerate(calls):
            n = n * comm.size if call == "reduce_scatter" else max(2, n)
            all_values = np.stack([values(rank, number, n, dtype) for rank in range(comm.size)])
            own = all_values[comm.rank].copy()
            if call == "allreduce":
                node.allreduce(own, divisor)
                expected = all_values.sum(0) / divisor
            elif call == "reduce_scatter":
                part = slice(comm.rank * n // comm.size, (comm.rank + 1) * n // comm.size)
                x, own = own, np.empty(n // comm.size, dtype)
                assert node.reduce_scatter(x, own, [own.size] * comm.size, divisor)
                assert np.array_equal(x, all_values[comm.rank])
                expected = all_values.sum(0)[part] / divisor
            else:
                whole = np.zeros(n * comm.size, dtype)
                whole[comm.rank * n : (comm.rank + 1) * n] = own
                assert node.allgather(None if call == "in place" else own, whole, [n] * comm.size)
                own, expected = whole, all_values.ravel()
            assert np.array_equal(own, expected.astype(dtype)), (call, n, dtype)
        node.free()

    run_ranks(size, body)


def test_what_is_short_uneven_or_of_whole_numbers_is_left_to_mpi() -> None:
    def body(comm: Communicator) -> None:
        comm.staging = node_staging(comm)
        assert comm.staging is not None
        whole = np.zeros(comm.size * 3, np.int16)
        assert not comm.staging.allgather(None, whole, [3] * comm.size)
        assert not comm.staging.allgather(None, np.zeros(300), [100, 200])
        ones = np.ones(200, np.int64)
        assert not comm.staging.reduce_scatter(ones, np.zeros(100, np.int64), [100, 100], 1)
        comm.reduce_scatter(ones, part := np.zeros(100, np.int64))
        assert part.tolist() == [2] * 100
        comm.reduce_scatter(np.ones(200), mean := np.zeros(100), "mean")
        assert mean.tolist() == [1.0] * 100
        comm.reduce_scatter(np.full(200, comm.rank, float), most := np.zeros(100), "max")
        assert most.tolist() == [1.0] * 100
        gathered = np.zeros(200)
        comm.allgather(np.full(100, 1.0 + comm.rank), gathered)
        assert gathered.tolist() == [1.0] * 100 + [2.0] * 100

    run_ranks(2, body)


def test_there_is_none_over_several_nodes() -> None:
    def body(comm: Communicator) -> None:
        assert node_staging(comm) is None

    run_ranks(2, body, [0, 1])
