"""A Transformer on text over MPI, on data and pipeline meshes: one process' numbers, and the same
text written by the trained model.
"""

import functools
from pathlib import Path

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.train import text_sample
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.run import train_run
from tests.pipeline_world import Trained, assert_same, on_mesh, train
from tests.text_world import text_config

pytestmark = pytest.mark.mpi(min_size=2)


def meshes(size: int) -> list[tuple[int, int]]:
    """All data x pipeline."""
    return [(size // ranks, ranks) for ranks in range(1, size + 1) if size % ranks == 0]


@functools.cache
def alone(tied: bool) -> Trained:
    return train(Communicator(Loopback()), text_config(model={"tied": tied}), 6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["one_f_one_b", "zb_h1", "zb_v"])
def test_every_mesh_trains_as_one_process(world: Communicator, name: str, tied: bool) -> None:
    for data, pipeline in meshes(world.size):
        choices = {"name": name} if pipeline > 1 else {}
        config = on_mesh(text_config(model={"tied": tied}), data, pipeline, **choices)
        found = train(world, config, 6)
        assert_same([world.broadcast_object(found, 0)], alone(tied))


def test_a_run_ends_with_the_same_text_on_every_mesh(
    world: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the summary that all ranks have, and in the folder; its weights can be evaluated."""
    monkeypatch.setattr(text_sample, "NUM_WRITTEN", 20)
    folder = Path(world.broadcast_object(str(tmp_path), 0))
    config = text_config(folder=str(tmp_path / "alone"), epochs=1)
    expected = train_run(config, Communicator(Loopback()))
    for data, pipeline in meshes(world.size):
        path = folder / f"{data}x{pipeline}"
        meshed = on_mesh(text_config(folder=str(path), epochs=1), data, pipeline)
        found = train_run(meshed, world)
        assert found["text_sample"] == expected["text_sample"]
        assert (path / "sample.txt").read_text() == expected["text_sample"] + "\n"
        evaluated = evaluate_run(path, world)
        assert evaluated["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-10)
        assert evaluated["test_bits_per_byte"] == pytest.approx(found["test_bits_per_byte"])
