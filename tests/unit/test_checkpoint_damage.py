"""Damage and kills: whatever a disk or a killed save leaves, a committed checkpoint loads."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_ml.checkpoint import index
from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.reader import newest, open_checkpoint
from dist_ml.checkpoint.verify import check_files
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DamageError, DataError
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
from tests.unsynced_disk import UnsyncedDisk

ALONE = Communicator(Loopback())
SMALL = {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor(True)}


def small(seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor + seed for name, tensor in SMALL.items()}


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
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    save_from(state(0), tmp_path, 1, 2, CUTS["flat"])
    damage(save_from(state(1), tmp_path, 2, 2, CUTS["flat"]) / name)
    found = newest(tmp_path, ALONE)
    assert found is not None
    assert found.step == 1
    ((passed, problem),) = found.passed_over
    assert passed == tmp_path / "step-2"
    assert name in problem


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
    found = open_checkpoint(path).index
    for share in range(3):
        check_files(path, found, share, 4)
    with pytest.raises(DamageError, match=r"rank-0001.safetensors is damaged"):
        check_files(path, found, 3, 4)


def test_nothing_begins_anew_where_all_are_damaged(tmp_path: Path) -> None:
    truncate(save_from(state(), tmp_path, 1) / "index.json")
    with pytest.raises(DataError, match=r"every checkpoint in .* is damaged"):
        newest(tmp_path, ALONE)


# None: the system lives on. Else the machine loses power, too: that share of the last names in
# folders had reached the disk, and of files what was synced.
@pytest.mark.parametrize("names_kept", [None, 1.0, 0.5, 0.0])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("again", [False, True], ids=["next_step", "same_step"])
def test_a_save_killed_at_any_operation_leaves_a_checkpoint(
    rank: int, names_kept: float | None, again: bool, tmp_path: Path
) -> None:
    """And the next save, which meets what the killed one left, is as any."""
    folder = tmp_path / "checkpoints"
    save_from(small(1), folder, 1, 2, CUTS["flat"])
    (tmp_path / "stash").mkdir()
    was_killed, at, taken = True, 0, []
    while was_killed:
        step = 1 if again else at + 2
        disk = UnsyncedDisk(folder, tmp_path / "stash")
        was_killed = killed_save(folder, rank, at, disk, step, seed=2 * at)
        if names_kept is not None:
            disk.lose_power(names_kept)
        found = newest(folder, ALONE)
        assert found is not None
        taken.append(holds(found, small(2 * at)))
        assert taken[-1] or holds(found, small(2 * at - 1 if at else 1)), at
        keep, clean = Keep(last=1), UnsyncedDisk(folder, tmp_path / "stash")
        save_from(small(2 * at + 1), folder, step, 2, CUTS["flat"], keep=keep, files=clean)
        assert [path.name for path in folder.iterdir()] == [f"step-{step}"]
        at += 1
    assert at > (20 if rank == 0 else 3)
    assert taken == sorted(taken)
    assert taken[-1]


def killed_save(folder: Path, rank: int, at: int, disk: Files, step: int, seed: int) -> bool:
    """Save `small(seed)` on two ranks, of which one is killed after `at` operations; was it?"""

    def body(comm: Communicator) -> None:
        own = pieces(small(seed), CUTS["flat"], comm.rank, comm.size)
        mine = KilledFiles(at, disk) if comm.rank == rank else disk
        save(folder, step, own, {}, comm, Keep(last=1), mine)

    try:
        run_ranks(2, body)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_told_by_all_and_costs_nothing(rank: int, tmp_path: Path) -> None:
    """Wherever a save meets it: what it has written is removed, and the next one is as any."""
    save_from(small(1), tmp_path, 1, 2, CUTS["flat"])

    def refused(comm: Communicator, at: int) -> str:
        own = pieces(small(2), CUTS["flat"], comm.rank, comm.size)
        files = FullDisk(at) if comm.rank == rank else None
        try:
            save(tmp_path, 2, own, {}, comm, Keep(last=1), files)
        except DataError as error:
            return str(error) if error.agreed else "one rank's"
        return ""

    at = 0
    while any(words := run_ranks(2, functools.partial(refused, at=at))):
        assert words[0] == words[1]
        assert "No space left on device; the folder must be writable, have room" in words[0]
        found = newest(tmp_path, ALONE)
        assert found is not None
        if found.step == 2:  # only the name COMMIT was not brought to the disk
            assert rank == 0
            break
        assert holds(found, small(1))
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"], at
        at += 1
    assert at > (10 if rank == 0 else 3)
    save_from(small(3), tmp_path, 2, 2, CUTS["flat"], keep=Keep(last=1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    found = newest(tmp_path, ALONE)
    assert found is not None
    assert holds(found, small(3))


def loop(file: Path) -> None:
    """Nobody can read it, root neither."""
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize("name", ["COMMIT", "index.json", "rank-0000.safetensors"])
def test_what_can_not_be_read_is_not_taken_for_damage(name: str, tmp_path: Path) -> None:
    """It may be sound: nothing goes on from the one before, and nothing removes it."""
    save_from(state(0), tmp_path, 1)
    path = save_from(state(1), tmp_path, 2)
    loop(path / name)
    with pytest.raises(DataError, match=r"step-2.* can't be read: Too many levels") as caught:
        newest(tmp_path, ALONE)
    assert not isinstance(caught.value, DamageError)
    save_from(state(2), tmp_path, 3, keep=Keep(last=3))
    assert path.is_dir()


def test_an_error_of_one_rank_at_the_commit_is_told_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the program, too, and in the thread of a save in the background."""

    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(index, "make", fault)

    def saves(comm: Communicator) -> str:
        own = pieces(state(), CUTS["flat"], comm.rank, comm.size)
        saver = AsyncSaver(tmp_path, comm)
        saver.save(1, own, {})
        for call in (saver.close, lambda: save(tmp_path, 1, own, {}, comm)):
            with pytest.raises(DataError, match="RuntimeError: a fault") as caught:
                call()
            assert caught.value.agreed
        return str(caught.value)

    assert len(set(run_ranks(2, saves))) == 1
    assert list(tmp_path.iterdir()) == []
