"""What can't be trained is told before training: one error, the same on all ranks."""

from pathlib import Path

import numpy as np
import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.train.build import build_mesh, build_trainer
from tests.configurations import train_config
from tests.thread_world import run_ranks


def errors_of(overrides: list[str], ranks: int) -> list[DistMLError]:
    """What building raises on each rank."""
    config = train_config(*overrides)

    def body(world: Communicator) -> DistMLError:
        with pytest.raises(DistMLError) as caught:
            build_trainer(config, build_mesh(config, world))
        return caught.value

    return run_ranks(ranks, body)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden=[1000000000000]"], "outputs, but this machine has"),
        (["data=synthetic", "data.num_outputs=1000000000000"], "make a teacher that takes"),
        (["data=arrays", "data.path=nowhere"], "data.path=nowhere is not a folder"),
        (
            ["data=synthetic", "data.num_train=1000000000000", "batch_size=1000000000000"],
            "lower batch_size, or compute it in more pieces with a larger accumulation",
        ),
        (["data.test_every=1000"], "leaves no sample for data.num_test"),
    ],
    ids=["hidden", "outputs", "folder", "batch", "nothing held out"],
)
def test_all_ranks_raise_the_same(ranks: int, overrides: list[str], message: str) -> None:
    found = errors_of(overrides, ranks)
    assert len({str(error) for error in found}) == 1
    assert all(message in str(error) and error.agreed for error in found)


@pytest.mark.parametrize("change", ["labels", "classes", "cut", "missing"])
def test_bad_files_are_told_on_all_ranks(change: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_x.npy", np.ones((9, 4)))
        np.save(tmp_path / f"{split}_y.npy", np.arange(9) % 3)
    x_file, y_file = tmp_path / "train_x.npy", tmp_path / "train_y.npy"
    overrides = ["data=arrays", f"data.path={tmp_path}"]
    if change == "labels":
        np.save(y_file, np.full(9, 10**15))
        message = "row 0 has label 1000000000000000"
    elif change == "classes":
        overrides.append("data.num_outputs=1000000000000000")
        message = "64 inputs and 1000000000000000 outputs, but this machine has"
    elif change == "cut":
        x_file.write_bytes(x_file.read_bytes()[:-1])
        message = "train_x.npy is no readable .npy file"
    else:
        x_file.unlink()
        message = "train_x.npy with the train samples is missing"
    found = errors_of(overrides, 2)
    assert all(message in str(error) and error.agreed for error in found)
    assert str(found[0]) == str(found[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=synthetic", "data.num_train=1000000000000000000"], "data.num_train=10+ is too lar"),
        (["data=synthetic", "data.noise=inf"], "data.noise=inf is out of range"),
        (["model.dropout=1.5"], "model.dropout=1.5 is no probability below 1"),
    ],
    ids=["samples", "noise", "dropout"],
)
def test_a_value_out_of_range_is_told_by_the_configuration(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(*overrides)
