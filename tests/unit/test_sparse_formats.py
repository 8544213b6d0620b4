"""How entries are written: indices, values and whole messages, compiled and plain, back and forth;
and how they are merged and dealt.
"""

import numpy as np
import pytest
from thread_world import run_ranks

from dist_ml import compiled
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import index_code, quantise
from dist_ml.comm.sparse.balance import IMBALANCE, balance
from dist_ml.comm.sparse.base import gather_sizes
from dist_ml.comm.sparse.cost import entry_bytes
from dist_ml.comm.sparse.entries import Entries, concatenate
from dist_ml.comm.sparse.entry_format import CompactFormat, PlainFormat, make_entry_format
from dist_ml.comm.sparse.merge import merge_all, merge_by_sorting
from dist_ml.comm.sparse.regions import BalancedRegions, own_cuts
from dist_ml.partition import counts

INDICES = {
    "none": [],
    "one": [7],
    "last": [2**31 - 2],
    "dense": list(range(100, 300)),
    "gaps": list(range(0, 4000, 20)),
    "far": [0, 2**14, 2**21, 2**28, 2**31 - 2],
    "mixed": [1, 2, 3, 5000, 5001, 10_000_000],
}
needs_numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


@pytest.mark.parametrize("case", INDICES)
def test_indices_come_back_from_the_smallest_form(case: str) -> None:
    indices = np.array(INDICES[case], np.int32)
    form, first, coded = index_code.encode(indices)
    np.testing.assert_array_equal(index_code.decode(form, first, indices.size, coded), indices)
    assert coded.dtype == np.uint8
    assert coded.size <= 4 * indices.size
    expected = {"dense": index_code.BITMAP, "gaps": index_code.GAPS, "far": index_code.GAPS}
    assert form == expected.get(case, form)


@needs_numba
@pytest.mark.parametrize("case", [name for name in INDICES if name != "none"])
def test_compiled_gaps_are_the_plain_ones(case: str) -> None:
    from dist_ml.comm.sparse import compiled_loops

    indices = np.array(INDICES[case], np.int32)
    compact, first = index_code.CompiledGaps(compiled_loops), int(indices[0])
    num_bytes = index_code._gap_bytes(indices)
    coded = index_code.PlainGaps.encode(indices, first, num_bytes)
    np.testing.assert_array_equal(compact.encode(indices, first, num_bytes), coded)
    for coder in (compact, index_code.PlainGaps):
        np.testing.assert_array_equal(coder.decode(coded, first, indices.size), indices)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", ["plain", "fp32", "bf16", "int4"])
@pytest.mark.parametrize("num", [0, 1, 5, 1024, 1025, 3000])
def test_sent_and_lost_are_what_was_to_be_sent(num: int, values: str, dtype: str) -> None:
    random = np.random.default_rng(num)
    indices = np.sort(random.choice(100_000, num, replace=False)).astype(np.int32)
    own = Entries(indices, (random.standard_normal(num) * 10).astype(dtype))
    entry_format = make_entry_format(dtype, values)
    assert isinstance(entry_format, PlainFormat if values == "plain" else CompactFormat)
    encoded = entry_format.encode(own)
    seen = entry_format.decode(encoded.message)
    assert encoded.message.dtype == np.int32
    np.testing.assert_array_equal(seen.indices, own.indices)
    np.testing.assert_array_equal(seen.values, encoded.sent.values)
    assert seen.values.dtype == dtype
    lost = encoded.lost.dense(100_000)[own.indices]
    np.testing.assert_array_equal(seen.values + lost, own.values)
    if num == 3000:
        expected = entry_bytes(100_000, num, np.dtype(dtype).itemsize, values)
        assert encoded.message.nbytes == pytest.approx(num * expected, rel=0.05)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_levels_come_back(bits: int) -> None:
    for num in (0, 1, 7, 64):
        levels = np.random.default_rng(num).integers(0, 1 << bits, num).astype(np.uint8)
        packed = quantise.pack_levels(levels, bits)
        assert packed.size == -(-num * bits // 8)
        np.testing.assert_array_equal(quantise.unpack_levels(packed, bits, num), levels)


@needs_numba
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_on_its_grid_and_as_large_as_stated_compiled_or_plain(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(1).standard_normal(2500).astype(np.float32)
    values[:10] = 0
    scales = quantise.spread(quantise.bucket_scales(values), values.size)
    step = scales / (2 ** (bits - 1) - 1)
    coded = quantise.qsgd_encode(values, bits, np.random.default_rng(2))
    fast = quantise.qsgd_decode(coded, bits, values.size, "float32")
    monkeypatch.setattr(compiled, "available", lambda: False)
    plain = quantise.qsgd_decode(coded, bits, values.size, "float32")
    np.testing.assert_allclose(plain, fast, rtol=1e-6)
    other = quantise.qsgd_encode(values, bits, np.random.default_rng(2))
    for message in (coded, other):
        assert message.size == quantise.qsgd_bytes(values.size, bits)
        decoded = quantise.qsgd_decode(message, bits, values.size, "float32")
        assert not decoded[:10].any()
        assert (np.abs(decoded - values) <= step * 1.0001).all()


@needs_numba
@pytest.mark.parametrize("sizes", [(0, 4), (5, 0), (1, 1), (40, 60)])
def test_merging_compiled_is_merging_by_sorting(sizes: tuple[int, int]) -> None:
    from dist_ml.comm.sparse.compiled_loops import merge_lists

    lists = []
    for seed, size in enumerate(sizes):
        random = np.random.default_rng(seed)
        lists += [np.sort(random.choice(100, size, replace=False)).astype(np.int32)]
        lists += [random.standard_normal(size).astype(np.float32)]
    for one, other in zip(merge_lists(*lists), merge_by_sorting(*lists), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num", range(1, 8))
def test_merging_all_is_the_dense_sum(num: int) -> None:
    parts = [
        Entries(np.arange(i, 60, i + 1, dtype=np.int32), np.full(len(range(i, 60, i + 1)), i + 1.0))
        for i in range(num)
    ]
    total = np.sum([part.dense(60) for part in parts], axis=0)
    merged = merge_all(parts)
    np.testing.assert_array_equal(merged.dense(60), total)
    assert (np.diff(merged.indices) > 0).all()


def test_entries_are_cut_where_regions_begin() -> None:
    own = Entries.of(np.array([0, 3, 0, 5, 0, 7], np.float32))
    pieces = own.cut([0, 2, 2, 5, 6])
    assert [piece.indices.tolist() for piece in pieces] == [[1], [], [3], [5]]
    np.testing.assert_array_equal(concatenate(pieces).values, own.values)
    assert own_cuts(own.indices, 3, 6).tolist() == [3, 5]
    assert own_cuts(own.indices[:1], 3, 6).tolist() == [6, 6]


@pytest.mark.parametrize("held", [(9, 0, 0), (0, 1, 8), (3, 3, 3), (5, 2, 2), (0, 0, 0), (100,)])
def test_dealt_entries_keep_their_order_and_are_even(held: tuple[int, ...]) -> None:
    size, total = len(held), sum(held)
    starts = np.cumsum((0, *held))

    def body(comm: Communicator) -> Entries:
        indices = np.arange(starts[comm.rank], starts[comm.rank + 1], dtype=np.int32)
        mine = Entries(indices, indices.astype(np.float32))
        return balance(comm, mine, gather_sizes(comm, mine.size))

    dealt = run_ranks(size, body)
    whole = concatenate(dealt)
    np.testing.assert_array_equal(whole.indices, np.arange(total))
    np.testing.assert_array_equal(whole.values, np.arange(total))
    even = max(held) * size > IMBALANCE * total + size
    assert [part.size for part in dealt] == (counts(total, size) if even else list(held))


def test_regions_are_renewed_when_their_time_comes_and_by_those_with_entries() -> None:
    def body(comm: Communicator) -> list[list[int]]:
        regions = BalancedRegions(comm, 1000, period=2)
        seen = [regions.boundaries.tolist()]
        for step in range(3):
            own = Entries.none("float32")
            if comm.rank == 0:
                indices = np.arange(8, dtype=np.int32) * 10 * (step + 1)
                own = Entries(indices, np.ones(8, np.float32))
            regions.renew(own)
            seen.append(regions.boundaries.tolist())
        other = BalancedRegions(comm, 1000, period=2)
        other.load_state_dict(regions.state_dict())
        assert other.boundaries.tolist() == seen[-1]
        other.load_state_dict({"age": 1, "boundaries": [0, 1000]})  # of another number of ranks
        assert other.state_dict()["age"] == 0
        return seen

    for seen in run_ranks(2, body):
        assert seen == [[0, 500, 1000], [0, 40, 1000], [0, 40, 1000], [0, 120, 1000]]
