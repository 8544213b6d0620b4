"""Every sparse allreduce against the dense sum in float64, on 1 to 9 ranks, for friendly and
adversarial supports.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Entries, Settings, SparseSum
from dist_ml.comm.sparse.cost import ExchangeSize
from dist_ml.comm.sparse.family import costs
from dist_ml.comm.sparse.gathering import DIRECT_RANKS, direct, doubling
from dist_ml.measure.cost_model import CostModel, Link

N = 500
SIZES = range(1, 10)
EXACT = ("allgather", "recursive_doubling", "split_allgather", "dense_split_allgather")
SELECTING = ("gtopk", "oktopk", "spardl")
SUPPORTS = ("random", "identical", "disjoint", "one_rank", "empty", "ragged", "ties")


def contribution(support: str, rank: int, size: int, k: int, dtype: str = "float32") -> Entries:
    random = np.random.default_rng([rank, size, k])
    shared = np.random.default_rng([size, k])
    values = random.standard_normal(k)
    if support == "random":
        indices = random.choice(N, k, replace=False)
    elif support == "identical":
        indices = shared.choice(N, k, replace=False)
    elif support == "disjoint":
        indices = np.arange(k) + rank * (N // size)
    elif support == "ties":
        indices, values = random.choice(N, k, replace=False), np.ones(k)
    else:
        count = {
            "one_rank": k if rank == size - 1 else 0,
            "empty": 0,
            "ragged": (rank * k) // size,
        }[support]
        indices, values = random.choice(N, count, replace=False), values[:count]
    return Entries(np.sort(indices).astype(np.int32), values.astype(dtype))


def total_of(parts: list[Entries]) -> np.ndarray:
    return sum((part.dense(N).astype(np.float64) for part in parts), np.zeros(N))


def conserved(own: list[Entries], results: list[SparseSum]) -> np.ndarray:
    """Result + everything returned, in float64."""
    total = results[0].to_dense(N).astype(np.float64)
    for result in results:
        for returned in result.returned:
            np.add.at(total, returned.indices, returned.values.astype(np.float64))
    return total


def exchange(
    name: str, own: list[Entries], k: int, settings: Settings | None = None, repeats: int = 1
) -> list[SparseSum]:
    def body(comm: Communicator) -> SparseSum:
        variant = SPARSE_ALLREDUCES[name].make(comm, N, settings or Settings())
        for _ in range(repeats):
            result = variant.reduce(own[comm.rank], k)
        return result

    return run_ranks(len(own), body)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", [*EXACT, *SELECTING])
def test_all_ranks_get_the_same_and_nothing_is_lost(name: str, support: str) -> None:
    _check_sums(name, support, SIZES if support == "random" else (1, 2, 4, 7))


@pytest.mark.parametrize("name", [*EXACT, *SELECTING])
def test_sends_that_complete_at_once_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.thread_messages.DEFAULT_SENDS", "buffered")
    _check_sums(name, "ragged", (2, 5, 8))


def _check_sums(name: str, support: str, sizes: Iterable[int]) -> None:
    for size in sizes:
        k = max(1, N // size // 2)
        own = [contribution(support, rank, size, k) for rank in range(size)]
        results = exchange(name, own, k)
        for result in results[1:]:
            np.testing.assert_array_equal(result.to_dense(N), results[0].to_dense(N))
        np.testing.assert_allclose(conserved(own, results), total_of(own), atol=1e-5)
        if name in EXACT:
            np.testing.assert_allclose(results[0].to_dense(N), total_of(own), atol=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *SELECTING])
def test_density_one_equals_dense(name: str) -> None:
    for size in (1, 2, 3, 6, 8):
        own = [contribution("random", rank, size, N) for rank in range(size)]
        results = exchange(name, own, N)
        np.testing.assert_allclose(results[0].to_dense(N), total_of(own), atol=2e-5)
        assert all(part.size == 0 for result in results for part in result.returned)


@pytest.mark.parametrize("name", [*EXACT, *SELECTING])
def test_float64_values(name: str) -> None:
    own = [contribution("random", rank, 3, 40, "float64") for rank in range(3)]
    results = exchange(name, own, 40, Settings(dtype="float64"))
    np.testing.assert_allclose(conserved(own, results), total_of(own), atol=1e-14)


@pytest.mark.parametrize("values", ["fp32", "bf16", "int4"])
@pytest.mark.parametrize("name", [*EXACT, *SELECTING])
def test_lossy_wires_return_what_they_lose(name: str, values: str) -> None:
    for size in (2, 3, 6):
        own = [contribution("random", rank, size, 60) for rank in range(size)]
        results = exchange(name, own, 60, Settings(values=values))
        for result in results[1:]:
            np.testing.assert_array_equal(result.to_dense(N), results[0].to_dense(N))
        np.testing.assert_allclose(conserved(own, results), total_of(own), atol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 7])
def test_oktopk_keeps_the_largest_sums_of_the_selected(size: int) -> None:
    own = [contribution("random", rank, size, 50) for rank in range(size)]
    result = exchange("oktopk", own, 50, Settings(threshold_steps=1))[0]
    expected = np.sort(np.abs(total_of(own)))[-50:]
    assert result.entries is not None
    np.testing.assert_allclose(np.sort(np.abs(result.entries.values)), expected, rtol=1e-5)


def test_gtopk_result_has_at_most_k() -> None:
    for size in SIZES:
        own = [contribution("random", rank, size, 50) for rank in range(size)]
        assert exchange("gtopk", own, 50)[0].nonzeros() <= 50


def test_dense_switch_when_supports_fill_in() -> None:
    own = [contribution("disjoint", rank, 4, N // 4) for rank in range(4)]
    assert exchange("recursive_doubling", own, N // 4)[0].dense is not None
    own = [contribution("random", rank, 4, 5) for rank in range(4)]
    assert exchange("recursive_doubling", own, 5)[0].entries is not None


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_unbiased(bits: int) -> None:
    own = [contribution("random", rank, 3, 100) for rank in range(3)]
    settings, repeats = Settings(qsgd_bits=bits), 100

    def body(comm: Communicator) -> np.ndarray:
        variant = SPARSE_ALLREDUCES["dense_split_allgather"].make(comm, N, settings)
        return (
            sum(
                variant.reduce(own[comm.rank], 100).to_dense(N).astype(np.float64)
                for _ in range(repeats)
            )
            / repeats
        )

    mean = run_ranks(3, body)[0]
    total = total_of(own)
    step = np.abs(total).max() / (2 ** (bits - 1) - 1)
    assert np.abs(mean - total).max() < 5 * step / math.sqrt(4 * repeats)


def words(
    name: str, size: int, k: int, support: str, repeats: int = 1, **settings: int
) -> list[tuple[int, int]]:
    """Words and messages that each rank sent in the last of `repeats` calls, control messages and
    sizes included.
    """
    own = [contribution(support, rank, size, k) for rank in range(size)]

    def body(comm: Communicator) -> tuple[int, int]:
        variant = SPARSE_ALLREDUCES[name].make(comm, N, Settings(**settings))
        for _ in range(repeats):
            before = comm.traffic.total()
            variant.reduce(own[comm.rank], k)
        after = comm.traffic.total()
        return after.words_sent - before.words_sent, after.messages - before.messages

    return run_ranks(size, body)


@pytest.mark.parametrize("size", range(2, 10))
@pytest.mark.parametrize("support", ["random", "identical", "disjoint"])
def test_ledger_words_within_the_published_bounds(size: int, support: str) -> None:
    k = 50
    share = (size - 1) / size
    log = math.ceil(math.log2(size))
    sizes = size - 1  # of the sizes that oktopk tells everybody
    told = 2 * sizes if size > DIRECT_RANKS else 0  # by an allgather in log P messages
    gathering = sizes if size <= DIRECT_RANKS else log
    assert all(
        sent == 2 * k * (size - 1) + told for sent, _ in words("allgather", size, k, support)
    )
    assert all(sent <= 2 * k * log for sent, _ in words("gtopk", size, k, support))
    for sent, messages in words("recursive_doubling", size, k, support):
        power = 1 << (size.bit_length() - 1)
        folded = (
            power < size
            # ranks beyond the power of two: a message of at most n more, and sums of twice as many
            # ranks
        )
        assert sent <= (4 if folded else 2) * k * (size - 1) + folded * (N + 1)
        assert messages <= log + folded
    for sent, _ in words("oktopk", size, k, support, repeats=4, threshold_steps=64):
        assert sent <= 6 * k * share + 2 * sizes + told + 2, (sent, 6 * k * share)
    for sent, messages in words("spardl", size, k, support, repeats=2):
        assert sent <= 4 * -(-k // size) * (size - 1) + told
        assert messages == log + gathering


def test_oktopk_regions_follow_the_entries() -> None:
    """All entries in the first tenth of the index space: every rank still owns about k/P of
    them.
    """
    size, k = 4, 40

    def body(comm: Communicator) -> list[int]:
        variant = SPARSE_ALLREDUCES["oktopk"].make(comm, N, Settings())
        own = Entries(np.arange(k, dtype=np.int32), np.ones(k, np.float32))
        variant.reduce(own, k)
        return [piece.size for piece in own.cut(variant._regions.boundaries)]

    assert run_ranks(size, body) == [[10] * 4] * 4


def test_oktopk_state_continues_the_same() -> None:
    own = [contribution("random", rank, 3, 50) for rank in range(3)]

    def body(comm: Communicator) -> tuple[SparseSum, SparseSum]:
        first = SPARSE_ALLREDUCES["oktopk"].make(comm, N, Settings())
        first.reduce(own[comm.rank], 50)
        second = SPARSE_ALLREDUCES["oktopk"].make(comm, N, Settings())
        second.load_state_dict(first.state_dict())
        return first.reduce(own[comm.rank], 50), second.reduce(own[comm.rank], 50)

    for one, other in run_ranks(3, body):
        np.testing.assert_array_equal(one.to_dense(N), other.to_dense(N))


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_planned_fill_in_is_what_random_supports_have(common: float) -> None:
    n, k, size = 20_000, 600, 5
    random = np.random.default_rng(3)
    shared = random.choice(n, round(common * k), replace=False)
    others = np.setdiff1d(np.arange(n), shared)
    supports = [
        np.concatenate([shared, random.choice(others, k - shared.size, replace=False)])
        for _ in range(size)
    ]
    for ranks in range(1, size + 1):
        union = np.unique(np.concatenate(supports[:ranks])).size
        assert ExchangeSize(n, k, size, common=common).filled(ranks) == pytest.approx(
            union, rel=0.02
        )


def test_more_ranks_never_cost_fewer_seconds() -> None:
    model = CostModel(
        Link(1e-7, 1e8), Link(1e-7, 1e8), 1e10
    )  # words and entries only: an allgather changes its messages
    for name in SPARSE_ALLREDUCES:
        seconds = [
            costs(1_000_000, 10_000, ranks, Settings())[name].seconds(model)
            for ranks in (1, 2, 4, 8, 16, 64)
        ]
        assert seconds == sorted(seconds), name


@pytest.mark.parametrize("gather", [direct, doubling])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_gathered_messages_are_those_of_all_ranks(gather: Callable, dtype: str) -> None:
    def message(rank: int) -> np.ndarray:
        return np.arange(rank * 7 % 5 * 3, dtype=dtype) + np.dtype(dtype).type(rank)

    def body(comm: Communicator) -> tuple[list[np.ndarray], int]:
        return gather(comm, message(comm.rank)), comm.traffic.total().messages

    for size in SIZES:
        for found, messages in run_ranks(size, body):
            assert messages == (size - 1 if gather is direct else (size - 1).bit_length())
            for rank in range(size):
                np.testing.assert_array_equal(found[rank], message(rank))
                assert found[rank].dtype == dtype
