"""Saving while the ranks go on: what is saved, when it is committed, how it fails and ends."""

import threading
from pathlib import Path

import pytest
import torch

from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.reader import newest
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DataError, MachineError
from tests.checkpoint_world import (
    CUTS,
    FullDisk,
    Killed,
    KilledFiles,
    holds,
    pieces,
    save_from,
    state,
)
from tests.thread_world import LIMIT_SECONDS, run_ranks

ALONE = Communicator(Loopback())


class HeldFiles(Files):
    """Creates no file before it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def create(self, path: Path) -> int:
        assert self.let.wait(LIMIT_SECONDS)
        return super().create(path)


def begin(
    comm: Communicator, folder: Path, seed: int, step: int, files: Files | None = None
) -> AsyncSaver:
    """Begin to save `state(seed)`, and overwrite it."""
    saver = AsyncSaver(folder, comm, Keep(last=1), files)
    own = pieces(state(seed), CUTS["last_dim"], comm.rank, comm.size)
    saver.save(step, own, {})
    for piece in own:
        piece.values.zero_()
    return saver


def loaded(folder: Path, seed: int) -> bool:
    found = newest(folder, ALONE)
    return found is not None and holds(found, state(seed))


@pytest.mark.parametrize("size", [1, 3])
def test_values_may_change_while_they_are_saved(size: int, tmp_path: Path) -> None:
    path = run_ranks(size, lambda comm: begin(comm, tmp_path, 0, 4).close())
    assert path == [tmp_path / "step-4"] * size
    assert loaded(tmp_path, 0)


def test_nothing_is_committed_before_all_ranks_have_written(tmp_path: Path) -> None:
    held = HeldFiles()

    def body(comm: Communicator) -> int:
        saver = begin(comm, tmp_path, 0, 4, held if comm.rank == 1 else None)
        for _ in range(3):
            assert saver.poll() is None
        assert newest(tmp_path, comm) is None
        held.let.set()
        polls = 0
        while saver.poll() is None:
            polls += 1
        assert saver.poll() is None  # told once
        assert saver.close() is None
        return polls

    polls = run_ranks(2, body)
    assert polls[0] == polls[1]
    assert loaded(tmp_path, 0)


def test_one_buffer_serves_all_saves_and_waits_for_its_turn(tmp_path: Path) -> None:
    def body(comm: Communicator) -> set[int]:
        saver = AsyncSaver(tmp_path, comm, Keep(last=1))
        addresses = set()
        for step in range(4):
            saver.save(step, pieces(state(step), CUTS["flat"], comm.rank, comm.size), {})
            addresses.add(saver._copy.data_ptr())
        saver.close()
        return addresses

    assert [len(addresses) for addresses in run_ranks(2, body)] == [1, 1]
    assert loaded(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_disk_that_hangs_ends_all_ranks(tmp_path: Path) -> None:
    held = HeldFiles()

    def body(comm: Communicator) -> bool:
        saver = begin(comm, tmp_path, 0, 4, held if comm.rank == 1 else None)
        with pytest.raises(MachineError, match="checkpoint 4 was not on the disk in time"):
            saver.close(limit_seconds=0.05 if comm.rank == 0 else LIMIT_SECONDS)
        held.let.set()
        saver.close()
        return True

    assert run_ranks(2, body) == [True, True]


@pytest.mark.parametrize(("rank", "at"), [(1, 0), (1, 2), (0, 4), (0, 7), (0, 9)])
def test_a_full_disk_is_told_by_all_and_the_next_save_is_tried(
    rank: int, at: int, tmp_path: Path
) -> None:
    save_from(state(1), tmp_path, 1, 2, CUTS["flat"])

    def body(comm: Communicator) -> None:
        saver = begin(comm, tmp_path, 2, 2, FullDisk(at) if comm.rank == rank else None)
        with pytest.raises(DataError, match=f"rank {rank} .*No space left"):
            saver.close()
        assert saver.poll() is None
        assert loaded(tmp_path, 1)
        saver._files = Files()
        saver.save(3, pieces(state(3), CUTS["flat"], comm.rank, comm.size), {})
        saver.close()

    run_ranks(2, body)
    assert loaded(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_killed_at_any_operation_leaves_a_checkpoint(tmp_path: Path) -> None:
    save_from(state(1), tmp_path, 1)
    last = 1
    for at in range(100):
        was_killed, seed = False, at + 2
        try:
            begin(ALONE, tmp_path, seed, seed, KilledFiles(at)).close()
        except Killed:
            was_killed = True
        last = seed if loaded(tmp_path, seed) else last
        assert loaded(tmp_path, last)
        if not was_killed:
            break
    assert last == seed
    assert at > 15


def test_a_fault_of_the_program_in_the_thread_is_not_lost(tmp_path: Path) -> None:
    class Faulty(Files):
        def sync(self, descriptor: int) -> None:
            raise RuntimeError("a fault")

    with pytest.raises(DataError, match="RuntimeError: a fault"):
        begin(ALONE, tmp_path, 0, 1, Faulty()).close()


def test_pieces_that_are_not_dense(tmp_path: Path) -> None:
    of = {"x": torch.arange(12.0).view(3, 4).t()}
    run_ranks(1, lambda comm: save_now(comm, tmp_path, of))
    found = newest(tmp_path, ALONE)
    assert found is not None
    assert holds(found, of)


def save_now(comm: Communicator, folder: Path, of: dict[str, torch.Tensor]) -> None:
    saver = AsyncSaver(folder, comm)
    saver.save(1, pieces(of, CUTS["copies"], comm.rank, comm.size), {})
    saver.close()
