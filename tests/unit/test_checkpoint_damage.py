"""Damage and kills: whatever a disk or a killed save leaves, a committed checkpoint loads."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.reader import newest, open_checkpoint
from dist_ml.checkpoint.verify import check_files
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DataError
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
from tests.thread_world import run_ranks

ALONE = Communicator(Loopback())
SMALL = {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor(True)}


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def extend(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize("damage", [truncate, extend, Path.unlink, lambda file: flip(file, 60)])
@pytest.mark.parametrize("name", ["index.json", "rank-0000.safetensors", "rank-0001.safetensors"])
def test_the_one_before_a_damaged_one_is_taken(
    name: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_from(state(0), tmp_path, 1, 2, CUTS["flat"])
    damage(save_from(state(1), tmp_path, 2, 2, CUTS["flat"]) / name)
    with caplog.at_level(logging.WARNING):
        found = newest(tmp_path, ALONE)
    assert found is not None
    assert found.step == 1
    assert name in caplog.text


def test_every_byte_counts(tmp_path: Path) -> None:
    path = save_from(SMALL, tmp_path, 1)
    for file in sorted(path.iterdir()):
        for position in range(
            file.stat().st_size - (file.name == "COMMIT")
        ):  # its last ends a line
            flip(file, position)
            with pytest.raises(DataError):
                check_files(path, open_checkpoint(path).index)
            flip(file, position)
    check_files(path, open_checkpoint(path).index)


def test_a_part_of_the_bytes_is_read_by_each_rank(tmp_path: Path) -> None:
    path = save_from(state(), tmp_path, 1, 2, CUTS["flat"])
    flip(path / "rank-0001.safetensors", (path / "rank-0001.safetensors").stat().st_size - 1)
    index = open_checkpoint(path).index
    for share in range(3):
        check_files(path, index, share, 4)
    with pytest.raises(DataError, match=r"rank-0001.safetensors is damaged"):
        check_files(path, index, 3, 4)


def test_nothing_begins_anew_where_all_are_damaged(tmp_path: Path) -> None:
    truncate(save_from(state(), tmp_path, 1) / "index.json")
    with pytest.raises(DataError, match=r"every checkpoint in .* is damaged"):
        newest(tmp_path, ALONE)


@pytest.mark.parametrize("power_loss", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("again", [False, True], ids=["next_step", "same_step"])
def test_a_save_killed_at_any_operation_leaves_a_checkpoint(
    rank: int, power_loss: bool, again: bool, tmp_path: Path
) -> None:
    """Steps follow each other in one folder, so each save meets what the killed one left."""
    save_from(state(1), tmp_path, 1, 2, CUTS["flat"])
    at, step, last = 0, 1, 1
    while True:
        step = 1 if again else step + 1
        saved = at + 10 if again else step
        was_killed = killed_save(tmp_path, rank, at, power_loss, step, saved)
        found = newest(tmp_path, ALONE)
        assert found is not None
        if holds(found, state(saved)):
            last = saved
        assert holds(found, state(last)), at
        if not was_killed:
            break
        at += 1
    assert at > (20 if rank == 0 else 3)
    assert last == saved
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{step}"]


def killed_save(folder: Path, rank: int, at: int, power_loss: bool, step: int, seed: int) -> bool:
    """Save `state(seed)` on two ranks, of which one is killed after `at` operations; was it?"""
    files = KilledFiles(at, power_loss)

    def body(comm: Communicator) -> None:
        own = pieces(state(seed), CUTS["flat"], comm.rank, comm.size)
        mine = files if comm.rank == rank else None
        save(folder, step, own, {}, comm, Keep(last=1), mine)

    try:
        run_ranks(2, body)
    except Killed:
        return True
    return False


def test_a_full_disk_is_told_by_all_and_costs_nothing(tmp_path: Path) -> None:
    save_from(state(1), tmp_path, 1, 2, CUTS["flat"])
    for at in range(4):

        def body(comm: Communicator, at: int = at) -> bool:
            own = pieces(state(2), CUTS["flat"], comm.rank, comm.size)
            files = FullDisk(at) if comm.rank == 1 else None
            with pytest.raises(DataError, match=r"rank 1 .*No space left on device; .* room"):
                save(tmp_path, 2, own, {}, comm, Keep(last=1), files)
            return True

        assert run_ranks(2, body) == [True, True]
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    found = newest(tmp_path, ALONE)
    assert found is not None
    assert holds(found, state(1))
