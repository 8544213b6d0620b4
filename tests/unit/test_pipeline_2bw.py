"""PipeDream-2BW on a mesh of data x pipeline is a plain loop over a whole model that updates with
the gradient at the weights of the step before; and its steps run into each other.
"""

import copy
import dataclasses
import functools
import math
import threading
from typing import Any

import pytest
import torch
from pipeline_world import (
    HIDDEN,
    Trained,
    assert_same,
    on_mesh,
    settings,
    simulate,
    tied_skip,
    train,
)
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig, TrainConfig
from dist_ml.errors import NonFiniteError
from dist_ml.models import MODELS, ModelMember
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

NAME = "pipedream_2bw"


def pipelined(
    config: TrainConfig, data: int, pipeline: int, num_steps: int = 20, **choices: Any
) -> list[Trained]:
    """Steps that run into each other, of which the last has begun another one by the end."""
    spread = on_mesh(config, data, pipeline, name=NAME, **choices)
    body = functools.partial(train, config=spread, num_steps=num_steps, goes_on=True)
    return run_ranks(data * pipeline, body)


@functools.cache
def simulated(num_steps: int = 20) -> Trained:
    return simulate(settings(), num_steps)


@pytest.mark.parametrize(
    ("data", "pipeline", "microbatches"),
    [(1, 2, 2), (1, 2, 5), (1, 4, 4), (1, 4, 7), (2, 2, 4), (3, 2, 3), (2, 3, 3)],
)
def test_it_trains_as_a_loop_that_keeps_the_weights_of_the_step_before(
    data: int, pipeline: int, microbatches: int
) -> None:
    """In fp64; stages of uneven layers, batches that don't divide, dropout, and every third step
    with fewer samples than micro-batches.
    """
    found = pipelined(settings(), data, pipeline, microbatches=microbatches)
    assert_same(found, simulated())


def test_the_delay_makes_a_difference_that_the_comparison_sees() -> None:
    plain = run_ranks(2, lambda comm: train(comm, on_mesh(settings(), 1, 2), num_steps=4))
    with pytest.raises(AssertionError):
        assert_same(plain, simulated(4))
    assert plain[0].losses[0] == pytest.approx(simulated(4).losses[0], rel=1e-12)


@pytest.mark.parametrize(("data", "pipeline"), [(1, 2), (1, 4), (2, 2)])
def test_fp32_stays_close(data: int, pipeline: int) -> None:
    model = ModelConfig(hidden=HIDDEN[:7], activation="tanh", dropout=0.1)
    config = settings(precision="fp32", model=model)
    assert_same(pipelined(config, data, pipeline), simulate(config, 20), 2e-5)


def test_steps_that_each_empty_the_pipe_have_the_same_numbers() -> None:
    config = on_mesh(settings(), 1, 3, name=NAME)
    assert_same(run_ranks(3, lambda comm: train(comm, config, num_steps=7)), simulated(7))


OTHERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": OptimizerConfig("adamw", lr=0.01, weight_decay=0.1)},
    "decay": {"optimizer": OptimizerConfig("sgd", lr=0.1, weight_decay=0.1, momentum=0.9)},
    "poll": {"allreduce": {"name": "ring", "overlap": "poll", "bucket_bytes": 512}},
    "thread": {"allreduce": {"name": "ring", "overlap": "thread", "bucket_bytes": 512}},
    "sparse": {"sparse": {"allreduce": "allgather", "density": 1.0, "dense_below": 0}},
    # layers that write their gradients themselves, of 135,000 weights
    "large": {"model": ModelConfig(hidden=(4, 300, 450, 6), activation="relu", dropout=0.1)},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", list(OTHERS))
def test_what_else_a_step_can_be(case: str, recompute: bool) -> None:
    config = settings(**OTHERS[case])
    kernel = "numpy" if case == "large" else "torch"
    config = dataclasses.replace(config, kernel=kernel)
    found = pipelined(config, 2, 2, num_steps=5, recompute=recompute)
    assert_same(found, simulate(config, 5))


@pytest.mark.parametrize(("data", "pipeline"), [(1, 4), (2, 2)])
def test_a_shared_weight_and_a_connection_over_stages(
    data: int, pipeline: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    config = settings(model=ModelConfig("tied_skip", hidden=(6,) * 6))
    assert_same(pipelined(config, data, pipeline, num_steps=7), simulate(config, 7))


def in_ranks(body: Any, ranks: int = 2, **changes: Any) -> list[Any]:
    """What `body` makes of the trainers of so many stages."""
    config = on_mesh(settings(**changes), 1, ranks, name=NAME)
    return run_ranks(ranks, lambda comm: body(build_trainer(config, build_mesh(config, comm))))


def test_evaluating_between_steps_changes_nothing() -> None:
    """Also where the next step has begun: it begins again."""

    def body(trainer: Trainer) -> tuple[list[float], list[float]]:
        losses, found = [], []
        for epoch in range(2):
            for step in trainer.epoch(epoch, goes_on=True):
                losses.append(step.loss)
                if step.number % 2:
                    found.append(trainer.evaluate(trainer.dataset.test).loss)
        trainer.close()
        return losses, found

    for losses, found in in_ranks(body, 3):
        assert losses == pytest.approx(simulated(6).losses, rel=1e-12)
        assert found[0] == pytest.approx(simulated(2).evaluation[0], rel=1e-12)


def test_it_goes_on_from_its_state() -> None:
    """Both versions of the weights are in it."""

    def body(trainer: Trainer) -> tuple[list[float], list[float]]:
        list(trainer.next_steps(2))
        again = build_trainer(on_mesh(settings(), 1, 2, name=NAME), trainer.mesh)
        again.load_state_dict(copy.deepcopy(trainer.state_dict()))
        for state, same in zip(trainer.tensors(), again.tensors(), strict=True):
            same.values.copy_(state.values)
        losses = [[step.loss for step in each.next_steps(3)] for each in (trainer, again)]
        trainer.close()
        again.close()
        return losses[0], losses[1]

    for losses, again in in_ranks(body):
        assert losses == again
        assert losses == pytest.approx(simulated(5).losses[2:], rel=1e-12)


def test_a_step_that_has_begun_is_dropped_where_another_one_follows() -> None:
    def body(trainer: Trainer) -> list[float]:
        losses = [next(trainer.epoch(0)).loss]  # has begun batch 1
        for index in (2, 1):
            losses.append(trainer.step(0, index).loss)
        trainer.close()
        return losses

    def expected(trainer: Trainer) -> list[float]:
        losses = [trainer.step(0, index).loss for index in (0, 2, 1)]
        trainer.close()
        return losses

    assert in_ranks(body, 3) == in_ranks(expected, 3)


def test_saving_its_state_drops_no_step_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    empty_pipe = StageRunner.empty_pipe
    monkeypatch.setattr(
        StageRunner, "empty_pipe", lambda self: (dropped.append(self), empty_pipe(self))
    )

    def body(trainer: Trainer) -> list[float]:
        losses = []
        for step in trainer.next_steps(4):
            losses.append(step.loss)
            trainer.tensors()
            trainer.state_dict()
        trainer.close()
        return losses

    for losses in in_ranks(body, 3):
        assert losses == pytest.approx(simulated(4).losses, rel=1e-12)
    assert not dropped


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize(("data", "pipeline"), [(1, 4), (2, 2)])
def test_what_any_stage_is_told_all_know_after_the_same_step(
    data: int, pipeline: int, evaluates: bool
) -> None:
    """As many steps later as there are stages between it and the last one."""
    config = on_mesh(settings(), data, pipeline, name=NAME)
    num_steps, at = pipeline + 3, 1

    def stops(world: Communicator, who: int) -> list[bool]:
        mesh = build_mesh(config, world)
        trainer: Trainer = build_trainer(
            config, mesh, lambda: world.rank == who and trainer.num_steps == at
        )
        found = []
        for step in trainer.next_steps(num_steps):
            found.append(step.stop)
            if evaluates:
                trainer.evaluate(trainer.dataset.test)
        trainer.close()
        return found

    for who in range(data * pipeline):
        stage = who % pipeline
        known = [number == at + pipeline - 1 - stage for number in range(num_steps)]
        found = run_ranks(data * pipeline, functools.partial(stops, who=who))
        assert found == [known] * (data * pipeline), f"rank {who} was told"


def test_there_are_two_versions_of_the_weights_and_as_many_activations_as_proved() -> None:
    def body(trainer: Trainer) -> tuple[set[int], int]:
        places: set[int] = set()
        parameter = next(p for p in trainer.model.parameters() if not p.is_meta)
        runner = trainer._train_step.stages._runner  # type: ignore[attr-defined]
        enter = runner._batches.enter

        def noting(m: int) -> None:
            places.add(parameter.data_ptr())
            enter(m)

        runner._batches.enter = noting
        for epoch in range(3):
            for _ in trainer.epoch(epoch, goes_on=epoch < 2):
                places.add(parameter.data_ptr())
        trainer.close()
        return places, runner.peak_kept

    found = in_ranks(body, 4, batch_size=30)
    assert [len(places) for places, _ in found] == [2] * 4
    assert [held for _, held in found] == [4, 3, 2, 1]


def test_the_last_stage_does_not_wait_for_the_first_one() -> None:
    """It ends a step while the first one still waits before its last backward pass."""
    ended = threading.Event()

    def body(trainer: Trainer) -> bool:
        comm = trainer.mesh.comm("pipeline")
        runner = trainer._train_step.stages._runner  # type: ignore[attr-defined]
        take, seen = runner._messages.take, []

        def waiting(edge: Any, m: int, backward: bool = False) -> torch.Tensor:
            seen.append(m)
            if comm.rank == 0 and backward and m == 3 and len(seen) == 4:
                assert ended.wait(20), "the last stage waits"
            return take(edge, m, backward)  # type: ignore[no-any-return]

        runner._messages.take = waiting
        for step in trainer.epoch(0, goes_on=True):
            if comm.rank == 1 and step.number == 0:
                ended.set()
        trainer.close()
        return ended.is_set()

    assert in_ranks(body) == [True, True]


def test_a_loss_that_is_not_finite_ends_all_ranks_with_nothing_under_way() -> None:
    def body(trainer: Trainer) -> tuple[str, bool, float]:
        for parameter in trainer.model.parameters():
            if not parameter.is_meta and trainer.mesh.comm("pipeline").rank == 1:
                parameter.data.fill_(math.inf)
        with pytest.raises(NonFiniteError) as caught:
            list(trainer.epoch(0))
        stages = trainer._train_step.stages
        trainer.close()
        return str(caught.value), caught.value.agreed, len(stages._runner._kept)  # type: ignore[attr-defined]

    for told, agreed, kept in in_ranks(body, 3):
        assert "in epoch 0, step 0" in told
        assert agreed
        assert kept == 0
