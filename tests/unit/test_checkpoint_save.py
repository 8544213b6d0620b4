"""Checkpoints that are written and read: any ranks to any ranks, what files hold, who writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dist_ml.checkpoint import folder as folders
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.index import Index, StoredTensor
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.plan import HeldBox, held_box, plan
from dist_ml.checkpoint.reader import Checkpoint, newest, open_checkpoint
from dist_ml.checkpoint.tensor_file import DTYPES
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DataError
from dist_ml.partition import Range, block
from dist_ml.placement import whole
from tests.checkpoint_world import CUTS, corner, holds, pieces, save_from, state, values_of
from tests.thread_world import run_ranks

ALONE = Communicator(Loopback())


@pytest.mark.parametrize("before", CUTS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_what_any_ranks_wrote_any_others_read(before: str, size: int, tmp_path: Path) -> None:
    saved = state()
    save_from(saved, tmp_path, 7, size, CUTS[before])

    def reads(comm: Communicator) -> None:
        found = newest(tmp_path, comm)
        assert found is not None
        assert (found.step, found.header) == (7, {"seed": 3})
        assert sorted(found.names) == sorted(saved)
        for after in CUTS.values():
            for name, tensor in saved.items():
                assert (found.shape(name), found.dtype(name)) == (tensor.shape, tensor.dtype)
                for region in after(tuple(tensor.shape), comm.rank, comm.size):
                    for wanted in (region, corner(region)):
                        values = found.read(name, wanted)
                        assert torch.equal(values, values_of(tensor, wanted)), (name, wanted)

    for others in (1, 4):
        run_ranks(others, reads)


def test_values_are_read_into_tensors_that_lie_anyhow(tmp_path: Path) -> None:
    saved = {"x": torch.arange(24.0).view(4, 6)}
    save_from(saved, tmp_path, 1, 2, CUTS["last_dim"])
    found = open_checkpoint(tmp_path / "step-1")
    target = torch.nn.Parameter(torch.zeros(6, 4).t())
    found.read_into("x", whole((4, 6)), target)
    assert torch.equal(target, saved["x"])
    with pytest.raises(AssertionError):
        found.read_into("x", whole((4, 6)), torch.zeros(4, 6, dtype=torch.float64))


def test_values_that_are_read_may_be_changed(tmp_path: Path) -> None:
    save_from(state(), tmp_path)
    found = open_checkpoint(tmp_path / "step-1")
    found.read("model/weight", whole((5, 7))).fill_(0)
    assert holds(found, state())


def test_files_are_safetensors_and_an_index(tmp_path: Path) -> None:
    saved = state()
    path = save_from(saved, tmp_path, 7, 2, CUTS["last_dim"])
    assert sorted(file.name for file in path.iterdir()) == [
        "COMMIT", "index.json", "rank-0000.safetensors", "rank-0001.safetensors",
    ]  # fmt: skip
    second = load_file(path / "rank-0001.safetensors")
    assert torch.equal(second["model/weight[0:5,4:7]"], saved["model/weight"][:, 4:])
    index = json.loads((path / "index.json").read_text())
    assert index["tensors"]["model/bias"]["dtype"] == "F64"
    boxes = index["tensors"]["model/bias"]["boxes"]
    assert [(box["offset"], box["size"], box["file"]) for box in boxes] == [
        ([0], [4], "rank-0000.safetensors"),
        ([4], [3], "rank-0001.safetensors"),
    ]


def test_one_rank_writes_a_plain_state_dict(tmp_path: Path) -> None:
    saved = state()
    path = save_from(saved, tmp_path)
    found = load_file(path / "rank-0000.safetensors")
    assert set(found) == set(saved) - {"residual/none"}  # which has no values to write
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


def test_copies_are_written_once_and_spread(tmp_path: Path) -> None:
    held = [held_box(Piece(f"{i}", (8,), whole((8,)), torch.ones(8))) for i in range(6)]
    writers = plan([held, held, held])
    assert [len(writer.boxes) for writer in writers] == [2, 2, 2]
    assert sorted(box.name for writer in writers for box in writer.boxes) == list("012345")
    uneven = plan([held, held[:2]])
    assert [len(writer.boxes) for writer in uneven] == [4, 2]
    path = save_from(state(), tmp_path, size=8, cut=CUTS["copies"])
    assert sorted(file.name for file in path.glob("rank-*")) == [
        f"rank-{rank:04}.safetensors"
        for rank in range(6)  # as many as tensors with values
    ]


def test_dtypes_that_come_first_are_wide() -> None:
    (writer,) = plan([[held_box(piece) for piece in pieces(state(), CUTS["flat"], 0, 1)]])
    starts = writer.layout.starts
    for box, start in zip(writer.boxes, starts, strict=True):
        assert start % DTYPES[box.dtype].itemsize == 0


def test_a_dtype_that_checkpoints_do_not_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"complex64.*float32"):
        save_from({"x": torch.ones(2, dtype=torch.complex64)}, tmp_path, size=2)
    assert not (tmp_path / "step-1.tmp").exists()


@pytest.mark.parametrize(
    "held",
    [
        [[HeldBox("x", "F32", (4,), (Range(0, 2),))]],  # a hole
        [[HeldBox("x", "F32", (4,), (Range(0, 3),)), HeldBox("x", "F32", (4,), (Range(2, 4),))]],
        [[HeldBox("x", "F32", (4,), whole((4,)))], [HeldBox("x", "F64", (4,), whole((4,)))]],
        [[HeldBox("x", "F32", (4,), (Range(0, 5),))]],
    ],
)
def test_tensors_that_are_not_whole_are_not_saved(held: list[list[HeldBox]]) -> None:
    with pytest.raises(AssertionError, match="x"):
        plan(held)


@pytest.mark.parametrize(
    ("name", "region", "words"),
    [
        ("gone", whole((4,)), "holds no gone"),
        ("x", whole((5,)), r"has x of \[4\], without a region"),
        ("x", whole((4, 1)), r"has x of \[4\], without a region"),
        ("y", whole((4,)), "no values for 1 elements of y"),
    ],
)
def test_what_is_not_there_is_never_made_up(
    name: str, region: tuple[Range, ...], words: str, tmp_path: Path
) -> None:
    path = save_from({"x": torch.arange(4), "y": torch.arange(4)}, tmp_path, 1, 4, CUTS["flat"])
    index = folders.read_index(path)
    y = index.tensors["y"]
    hole = StoredTensor(y.shape, y.dtype, y.boxes[:-1])
    tensors = {"x": index.tensors["x"], "y": hole}
    found = Checkpoint(path, Index(index.step, index.header, tensors, index.files))
    assert torch.equal(found.read("y", (Range(0, 3),)), torch.arange(3))
    with pytest.raises(DataError, match=words):
        found.read(name, region)


def steps_in(folder: Path) -> list[str]:
    return [path.name for path in folders.committed(folder)]


def test_what_is_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save_from({"x": torch.tensor(step)}, tmp_path, step, keep=Keep(last=2, every=3))
    assert steps_in(tmp_path) == ["step-7", "step-6", "step-3"]
    save_from({"x": torch.tensor(0)}, tmp_path, 2, keep=Keep(last=1))
    # Never the one that was just written, nor later ones, which are not of its run.
    assert steps_in(tmp_path) == ["step-7", "step-6", "step-3", "step-2"]
    save_from({"x": torch.tensor(0)}, tmp_path, 5, keep=Keep(last=1))
    assert steps_in(tmp_path) == ["step-7", "step-6", "step-5"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_from(state(0), tmp_path, 5)
    save_from(state(1), tmp_path, 5)
    found = newest(tmp_path, ALONE)
    assert found is not None
    assert holds(found, state(1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


def test_leftovers_and_strangers(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    assert newest(folder, ALONE) is None
    (folder / "step-3.tmp" / "deeper").mkdir(parents=True)
    (folder / "step-4").mkdir()  # has no COMMIT
    (folder / "notes.tmp").mkdir()
    assert newest(folder, ALONE) is None
    save_from(state(), folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.tmp", "step-2"]


def test_a_folder_that_can_not_be_written_is_told_by_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def saves(comm: Communicator) -> str:
        with pytest.raises(DataError) as caught:
            save_from_rank(comm, tmp_path / "file" / "checkpoints")
        assert caught.value.agreed
        return str(caught.value)

    assert len(set(run_ranks(2, saves))) == 1


def save_from_rank(comm: Communicator, folder: Path) -> None:
    from dist_ml.checkpoint.writer import save

    part = block(4, comm.size, comm.rank)
    save(folder, 1, [Piece("x", (4,), (part,), torch.ones(part.size))], {}, comm)


def test_all_ranks_are_told_of_a_damaged_one(tmp_path: Path) -> None:
    save_from(state(0), tmp_path, 1, 2, CUTS["flat"])
    last = save_from(state(1), tmp_path, 2, 2, CUTS["flat"])
    (last / "rank-0001.safetensors").unlink()

    def reads(comm: Communicator) -> bool:
        found = newest(tmp_path, comm)
        return found is not None and (found.step, len(found.passed_over)) == (1, 1)

    assert run_ranks(3, reads) == [True] * 3
