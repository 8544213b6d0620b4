"""The compiled loops of reductions in shared memory against their plain reference."""

import threading
import time
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml import compiled
from dist_ml.comm.allreduce import plain_loops, shared_buffers
from dist_ml.comm.allreduce.plain_loops import FLAG_STRIDE, PIECE_BYTES
from dist_ml.comm.shared_buffer import PAGE_BYTES
from dist_ml.errors import MachineError


def compiled_loops() -> ModuleType:
    if not compiled.available():
        pytest.skip("numba is not installed, or DIST_ML_NUMBA=0")
    from dist_ml.comm.allreduce import compiled_loops as loops

    return loops


def on_pages(values: np.ndarray) -> np.ndarray:
    """A copy of `values` whose rows begin on pages, as the loops may expect of shared memory."""
    item = values.dtype.itemsize
    stride = -(-max(1, values.shape[1]) * item // PAGE_BYTES) * PAGE_BYTES
    memory = np.zeros(len(values) * stride + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    rows = memory[start : start + len(values) * stride].view(values.dtype)
    copies: np.ndarray = rows.reshape(len(values), -1)
    copies[:, : values.shape[1]] = values
    return copies


def random_copies(size: int, n: int, dtype: str, seed: int = 0) -> np.ndarray:
    return on_pages(np.random.default_rng(seed).standard_normal((size, n)).astype(dtype))


@given(
    size=st.sampled_from([1, 2, 3, 6]),  # each is compiled
    n=st.integers(1, 70),
    cut=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    dtype=st.sampled_from(["float32", "float64"]),
    divisor=st.sampled_from([1.0, 3.0]),
    data=st.data(),
)
def test_reduce_is_its_reference_bit_by_bit(
    size: int, n: int, cut: tuple[int, int], dtype: str, divisor: float, data: st.DataObject
) -> None:
    loops = compiled_loops()
    start, stop = sorted(min(n, at) for at in cut)
    target = data.draw(st.integers(-1, size - 1))
    ours, theirs = random_copies(size, n, dtype), random_copies(size, n, dtype)
    rows, kind = tuple(range(size)), np.dtype(dtype).type
    loops.reduce(ours, rows, start, stop, kind(divisor), target)
    plain_loops.reduce(theirs, rows, start, stop, divisor, target)
    assert np.array_equal(ours, theirs)
    untouched = random_copies(size, n, dtype)
    assert np.array_equal(ours[:, :start], untouched[:, :start])
    assert np.array_equal(ours[:, stop:], untouched[:, stop:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pieces_longer_than_the_cache_share_are_summed_whole(dtype: str) -> None:
    loops = compiled_loops()
    n = 2 * PIECE_BYTES // np.dtype(dtype).itemsize + 37
    copies = random_copies(3, n, dtype)
    exact = copies[:, :n].astype(np.float64).sum(0)
    loops.reduce(copies, (0, 1, 2), 0, n, np.dtype(dtype).type(1), -1)
    assert all(np.array_equal(copies[0], copies[row]) for row in (1, 2))
    np.testing.assert_allclose(copies[0, :n], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -0.0, 1e-42])
def test_special_values_come_through(special: float) -> None:
    loops = compiled_loops()
    plain = np.zeros((2, 40), np.float32)
    plain[0, 17] = special
    ours, theirs = on_pages(plain), on_pages(plain)
    loops.reduce(ours, (0, 1), 0, 40, np.float32(1), -1)
    plain_loops.reduce(theirs, (0, 1), 0, 40, 1.0, -1)
    assert ours.tobytes() == theirs.tobytes()


LOOPS = ["plain", "compiled"]


def chosen(name: str) -> ModuleType:
    return plain_loops if name == "plain" else compiled_loops()


@pytest.mark.parametrize("name", LOOPS)
def test_flags_are_reached_when_all_are_there(name: str) -> None:
    loops = chosen(name)
    flags = np.zeros(6 * FLAG_STRIDE, np.int64)
    for index in (3, 4):
        loops.signal(flags, index, 7)
    assert not loops.reached(flags, 3, 3, 7, 0)
    loops.signal(flags, 5, 8)
    assert loops.reached(flags, 3, 3, 7, 0)
    assert not loops.reached(flags, 3, 3, 8, 3)
    assert not loops.reached(flags, 0, 3, 1, 3)
    assert (flags[: 3 * FLAG_STRIDE] == 0).all()


@pytest.mark.parametrize("name", LOOPS)
def test_advance_stops_where_others_are_missing_and_goes_on(name: str) -> None:
    loops = chosen(name)
    values = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]], np.float32)
    copies = on_pages(values)
    flags = np.zeros(4 * FLAG_STRIDE, np.int64)

    def advance(stage: int, rank: int) -> int:
        share = (0, 2) if rank == 0 else (2, 4)
        return int(loops.advance(stage, copies, (0, 1), flags, rank, 1, *share, np.float32(1), 2))

    assert advance(0, 0) == 1
    assert advance(1, 0) == 1
    assert copies[0, 0] == 1.0
    assert advance(0, 1) == 2
    assert copies[:, :4].tolist() == [[1, 2, 33, 44], [10, 20, 33, 44]]
    assert advance(1, 0) == 3
    assert copies[:, :4].tolist() == [[11, 22, 33, 44], [11, 22, 33, 44]]
    assert advance(2, 1) == 3


@pytest.mark.parametrize("name", LOOPS)
def test_threads_that_stand_for_ranks_reduce_many_times(name: str) -> None:
    """Each epoch's sum depends on the one before, so a rank that runs ahead would be seen."""
    loops = chosen(name)
    size, n, epochs = 3, 30, 40
    copies = on_pages(np.ones((size, n)))
    flags = np.zeros(2 * size * FLAG_STRIDE, np.int64)

    def rank_main(rank: int) -> None:
        share = (10 * rank, 10 * rank + 10)
        for epoch in range(1, epochs + 1):
            copies[rank] += rank
            stage = 0
            while stage < 3:
                stage = loops.advance(
                    stage, copies, (0, 1, 2), flags, rank, epoch, *share, float(size), 0
                )
                time.sleep(0)  # let the others run instead of looking again

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert np.allclose(copies[:, :n], 1.0 + epochs * 1.0)


def test_without_numba_processors_that_reorder_stores_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "available", lambda: False)
    monkeypatch.setattr(shared_buffers.platform, "machine", lambda: "aarch64")
    with pytest.raises(MachineError, match=r"need numba on aarch64.*allreduce=ring"):
        shared_buffers.choose_loops()
    monkeypatch.setattr(shared_buffers.platform, "machine", lambda: "x86_64")
    assert shared_buffers.choose_loops() is plain_loops


def test_ranks_that_share_cores_look_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_buffers.os, "sched_getaffinity", lambda _: {0, 1})
    alone, crowded = shared_buffers.choose_spins(2), shared_buffers.choose_spins(3)
    assert crowded < alone
