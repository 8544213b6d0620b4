"""Training on a mesh of data x pipeline over MPI is training in one process: each rank computes the
lone run, too, and compares.
"""

import dataclasses
import functools
from pathlib import Path

import pytest
import safetensors.torch
from pipeline_world import (
    HIDDEN,
    NUM_STEPS,
    SYNCHRONOUS,
    Trained,
    assert_same,
    on_mesh,
    poison,
    settings,
    simulate,
    tied_skip,
    train,
)

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.models import MODELS, ModelMember
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.run import train_run

pytestmark = pytest.mark.mpi(min_size=2)


def meshes(size: int) -> list[tuple[int, int]]:
    """All data x pipeline with a pipeline."""
    return [(size // ranks, ranks) for ranks in range(2, size + 1) if size % ranks == 0]


@functools.cache
def alone(num_steps: int = NUM_STEPS) -> Trained:
    return train(Communicator(Loopback()), settings(), num_steps)


def compare(
    world: Communicator, config: TrainConfig, expected: Trained, num_steps: int = NUM_STEPS
) -> None:
    found = train(world, config, num_steps)
    first = world.broadcast_object(found, 0)
    assert found[:4] == first[:4]
    assert_same([first], expected)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_every_schedule_trains_as_one_process(world: Communicator, name: str) -> None:
    for data, pipeline in meshes(world.size):
        if name == "chimera" and pipeline % 2:
            continue
        compare(world, on_mesh(settings(), data, pipeline, name=name), alone())


@pytest.mark.parametrize("name", ["one_f_one_b", "zb_h2", "zb_v"])
def test_steps_validated_after_their_update(world: Communicator, name: str) -> None:
    """Of which some are clipped, one is not finite, and the others are as they were taken."""
    config = settings(batch_size=5, clip_norm=2.0, nonfinite="skip")
    expected = train(Communicator(Loopback()), config, 12, look=poison)
    assert any(expected.skipped)
    for data, pipeline in meshes(world.size):
        run = on_mesh(config, data, pipeline, name=name, validate="after")
        found = train(world, run, 12, look=poison)
        assert_same([world.broadcast_object(found, 0)], expected)


@pytest.mark.parametrize("overlap", ["poll", "thread"])
@pytest.mark.parametrize("name", ["one_f_one_b", "chimera", "zb_v"])
def test_gradients_may_be_exchanged_during_the_schedule(
    world: Communicator, name: str, overlap: str
) -> None:
    exchange = {"name": "ring", "overlap": overlap, "bucket_bytes": 512}
    for data, pipeline in meshes(world.size):
        if name == "chimera" and pipeline % 2:
            continue
        config = on_mesh(settings(allreduce=exchange), data, pipeline, name=name)
        compare(world, config, alone())


@pytest.mark.parametrize("name", ["interleaved", "chimera", "zb_v"])
def test_a_shared_weight_and_a_connection_over_stages(
    world: Communicator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    config = settings(model=ModelConfig("tied_skip", hidden=(6,) * 6), clip_norm=0.1)
    expected = train(Communicator(Loopback()), config)
    for data, pipeline in meshes(world.size):
        if name != "chimera" or pipeline % 2 == 0:
            for recompute in (False, True):
                compare(
                    world,
                    on_mesh(config, data, pipeline, name=name, recompute=recompute),
                    expected,
                )


def test_large_messages_without_buffers(world: Communicator) -> None:
    """Activations beyond what MPI sends eagerly, under every schedule: nobody waits in a circle."""
    model = ModelConfig(hidden=(2048, 8) * 4, activation="tanh")
    config = settings(model=model, batch_size=30 * 16, data={"num_train": 30 * 16})
    expected = train(Communicator(Loopback()), config, 2)
    # each stage but the first begins with a layer that takes 2048 numbers of each sample
    stages = tuple(f"layers.{2 * i + (i > 0)}" for i in range(world.size))
    for name in ("gpipe", "one_f_one_b", "zb_h1"):
        run = on_mesh(config, 1, world.size, name=name, stages=stages)
        compare(world, run, expected, num_steps=2)


def test_steps_that_run_into_each_other_have_the_numbers_of_the_delayed_update(
    world: Communicator,
) -> None:
    expected = simulate(settings())
    for data, pipeline in meshes(world.size):
        config = on_mesh(settings(), data, pipeline, name="pipedream_2bw")
        found = train(world, config, goes_on=True)
        first = world.broadcast_object(found, 0)
        assert found[:4] == first[:4]
        assert_same([first], expected)


def test_large_messages_of_a_step_that_has_begun_and_is_dropped(world: Communicator) -> None:
    """Beyond what MPI sends eagerly; the last step has sent activations that nobody will use."""
    model = ModelConfig(hidden=(2048, 8) * 4, activation="tanh")
    config = settings(model=model, batch_size=30 * 16, data={"num_train": 30 * 32})
    stages = tuple(f"layers.{2 * i + (i > 0)}" for i in range(world.size))
    run = on_mesh(config, 1, world.size, name="pipedream_2bw", stages=stages)
    found = world.broadcast_object(train(world, run, 3, goes_on=True), 0)
    assert_same([found], simulate(config, 3))


def test_a_run_of_2bw_ends_and_can_be_evaluated(world: Communicator, tmp_path: Path) -> None:
    path = world.broadcast_object(str(tmp_path / "run"))
    config = on_mesh(settings(evaluate_every=3), 1, world.size, name="pipedream_2bw")
    summary = train_run(dataclasses.replace(config, folder=path), world)
    expected = simulate(settings(), 21)
    assert summary["schedule"] == "pipedream_2bw"
    assert summary["train_loss"] == pytest.approx(expected.losses[-1], rel=1e-10)
    assert summary["test_loss"] == pytest.approx(expected.evaluation[0], rel=1e-10)
    assert evaluate_run(path, world)["test_accuracy"] == summary["test_accuracy"]


def test_a_run_can_be_evaluated_on_other_meshes(world: Communicator, tmp_path: Path) -> None:
    path = world.broadcast_object(str(tmp_path / "run"))
    config = dataclasses.replace(on_mesh(settings(), 1, world.size, name="zb_h1"), folder=path)
    summary = train_run(config, world)
    assert (summary["status"], summary["ranks"]) == ("finished", world.size)
    for comm in (world, Communicator(Loopback())):
        values = evaluate_run(path, comm)
        assert values["test_accuracy"] == summary["test_accuracy"]
        assert values["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-10)
    weights = safetensors.torch.load_file(Path(path) / "checkpoints" / "model.safetensors")
    assert weights.keys() == {
        f"layers.{i}.{name}" for i in range(len(HIDDEN) + 1) for name in ("weight", "bias")
    }
    world.barrier()


def test_what_cannot_be_is_told_by_all_ranks(world: Communicator) -> None:
    config = on_mesh(settings(model=ModelConfig(hidden=())), 1, world.size)
    with pytest.raises(ConfigError, match="need as many blocks, but the model has 1") as caught:
        build_trainer(config, build_mesh(config, world))
    assert caught.value.agreed
