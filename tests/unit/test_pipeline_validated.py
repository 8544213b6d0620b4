"""Steps whose update comes before their validation are those of one process, whatever the ranks
agree on: clipped, skipped, taken as they are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_world import (
    SYNCHRONOUS,
    Trained,
    assert_same,
    on_mesh,
    poison,
    settings,
    tied_skip,
    train,
)
from test_pipeline_training import EXCHANGES
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import MeshConfig, OptimizerConfig, TrainConfig
from dist_ml.errors import NonFiniteError
from dist_ml.models import MODELS, ModelMember
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.post_validation import PostValidation
from dist_ml.train.trainer import Trainer

NUM_STEPS = 8
POISONED_STEP = 4
CLIP = 2.0  # some steps' gradients are longer


def changed(**changes: Any) -> TrainConfig:
    """Six steps an epoch."""
    return settings(**{"batch_size": 5, "clip_norm": CLIP, "nonfinite": "skip", **changes})


def alone(config: TrainConfig, **arguments: Any) -> Trained:
    return train(Communicator(Loopback()), config, NUM_STEPS, **arguments)


@functools.cache
def clipped() -> Trained:
    return alone(changed())


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of the steps that had begun, of all ranks."""
    found: list[str] = []
    for name in ("go_on", "discard"):
        method = getattr(PostValidation, name)

        def noted(
            self: Any, *args: Any, name: str = name, method: Callable[..., Any] = method
        ) -> Any:
            found.append(name)
            return method(self, *args)

        monkeypatch.setattr(PostValidation, name, noted)
    return found


def validated_after(config: TrainConfig, data: int, pipeline: int, name: str) -> TrainConfig:
    return on_mesh(config, data, pipeline, name=name, validate="after")


def pipelined(config: TrainConfig, **arguments: Any) -> list[Trained]:
    num_ranks = math.prod(v or 1 for v in dataclasses.astuple(config.mesh))
    return run_ranks(num_ranks, lambda comm: train(comm, config, NUM_STEPS, **arguments))


@pytest.mark.parametrize(
    ("name", "looks"),
    [(name, looks) for name in ("zb_h2", "zb_v") for looks in (True, False)],
)
@pytest.mark.usefixtures("sends")
def test_steps_are_those_of_one_process(
    name: str, looks: bool, verdicts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a rank learns at once that what it runs is for nothing, or as late as it may."""
    begin = PostValidation.begin

    def late(self: PostValidation, number: int, epoch: int, index: int, agreed: Any) -> None:
        begin(self, number, epoch, index, agreed if looks else lambda: False)

    monkeypatch.setattr(PostValidation, "begin", late)
    assert_same(pipelined(validated_after(changed(), 1, 4, name)), clipped())
    assert set(verdicts) == {"go_on", "discard"}


@pytest.mark.parametrize("name", [name for name in SYNCHRONOUS if name not in ("zb_h2", "zb_v")])
def test_of_every_schedule(name: str, verdicts: list[str]) -> None:
    assert_same(pipelined(validated_after(changed(), 1, 4, name)), clipped())
    assert set(verdicts) == {"go_on", "discard"}


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": OptimizerConfig("adamw", lr=0.01, weight_decay=0.1)},
    "fewer samples than micro-batches": {"batch_size": 4},
    **{name: EXCHANGES[name] for name in ("zero1", "zero2", "ring poll", "sparse")},
}


@pytest.mark.parametrize(
    ("name", "variant"), [*(("zb_h2", variant) for variant in VARIANTS), ("chimera", "zero1")]
)
def test_with_every_exchange(name: str, variant: str, verdicts: list[str]) -> None:
    plain = {k: v for k, v in VARIANTS[variant].items() if k in ("optimizer", "batch_size")}
    config = changed(**VARIANTS[variant])
    found = pipelined(validated_after(config, 2, 2, name))
    assert_same(found, alone(changed(**plain)) if plain else clipped())
    assert "discard" in verdicts


@pytest.mark.parametrize("clip_norm", [None, CLIP])
@pytest.mark.parametrize("name", ["zb_h2", "zb_v"])
def test_a_step_that_is_not_finite_is_left_out(name: str, clip_norm: float | None) -> None:
    config = changed(clip_norm=clip_norm)
    found = pipelined(validated_after(config, 1, 4, name), look=poison)
    expected = alone(config, look=poison)
    assert sum(expected.skipped) == 1
    assert_same(found, expected)


@pytest.mark.parametrize("variant", ["adamw", "zero1"])
@pytest.mark.parametrize("clip_norm", [None, CLIP])
def test_one_that_ends_the_run_ends_it_on_all_ranks(variant: str, clip_norm: float | None) -> None:
    """In the step it is of, nobody's message is left behind, and weights are those from before."""
    bad = POISONED_STEP
    changes = {"nonfinite": "stop", "clip_norm": clip_norm, **VARIANTS[variant]}
    config = validated_after(changed(**changes), 2, 2, "zb_h2")

    def body(comm: Communicator) -> Any:
        trainer = build_trainer(config, build_mesh(config, comm))
        poison(trainer)
        with pytest.raises(NonFiniteError) as caught:
            list(trainer.epoch(0))
        return str(caught.value), trainer.num_steps, trainer.weights()

    found = run_ranks(4, body)
    for words, num_steps, _ in found:
        assert f"epoch 0, step {bad} on all ranks" in words
        assert num_steps == bad
    plain = changed(**{key: changes[key] for key in changes if key != "data_parallel"})
    expected = train(Communicator(Loopback()), plain, bad).weights
    assert expected is not None
    for name, tensor in expected.items():
        torch.testing.assert_close(found[0][2][name], tensor, rtol=1e-10, atol=1e-12)


BETWEEN: dict[str, tuple[Callable[[Trainer], Any], set[str]]] = {
    # what is done between any two steps, and what becomes of the next one, which has begun
    "evaluates": (lambda trainer: trainer.evaluate(trainer.dataset.test), {"discard"}),
    "saves": (
        lambda trainer: (trainer.tensors(), trainer.state_dict(), trainer.mesh.world.barrier()),
        {"go_on"},
    ),
    "times": (lambda trainer: trainer.timed_actions(), {"go_on"}),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_is_done_between_steps_changes_nothing(between: str, verdicts: list[str]) -> None:
    config = validated_after(changed(clip_norm=None), 1, 4, "zb_h2")
    does, expected_verdicts = BETWEEN[between]

    def body(comm: Communicator) -> list[float]:
        trainer = build_trainer(config, build_mesh(config, comm))
        losses = []
        for step in trainer.epoch(0):
            losses.append(step.loss)
            does(trainer)
        trainer.close()
        return losses

    expected = alone(changed(clip_norm=None)).losses[:6]
    for losses in run_ranks(4, body):
        assert losses == pytest.approx(expected, rel=1e-10)
    assert set(verdicts) == expected_verdicts


def test_a_step_that_has_begun_is_dropped_where_another_one_follows(verdicts: list[str]) -> None:
    config = validated_after(changed(clip_norm=None), 1, 4, "zb_h2")

    def body(comm: Communicator, begins: bool) -> list[float]:
        trainer = build_trainer(config, build_mesh(config, comm))
        first = next(trainer.epoch(0)) if begins else trainer.step(0, 0)
        losses = [first.loss, *(trainer.step(0, index).loss for index in (3, 1))]
        trainer.close()
        return losses

    expected = run_ranks(4, lambda comm: body(comm, begins=False))
    assert not verdicts
    assert run_ranks(4, lambda comm: body(comm, begins=True)) == expected
    assert verdicts == ["discard"] * 4


def test_the_last_steps_times_are_complete_where_the_next_one_has_begun() -> None:
    config = validated_after(changed(clip_norm=None), 1, 4, "zb_h2")

    def body(comm: Communicator) -> bool:
        trainer = build_trainer(config, build_mesh(config, comm))
        next(trainer.epoch(0))
        timed = trainer.timed_actions()
        assert trainer.pipeline is not None
        planned = trainer.pipeline.schedule.actions
        trainer.close()
        ran = [[timed_action.action for timed_action in rank] for rank in timed]
        return ran == [[a for a in rank if a.microbatch < 5] for rank in planned]

    assert all(run_ranks(4, body))  # five samples are five micro-batches, and three empty ones


def test_ranks_that_share_layers(verdicts: list[str]) -> None:
    config = changed(model=ModelConfig(hidden=(8,) * 7, activation="tanh", dropout=0.1))
    expected = alone(config)
    on_ranks = validated_after(config, 2, 2, "zb_v")
    on_ranks = dataclasses.replace(on_ranks, mesh=MeshConfig(2, 2, 2))
    assert_same(pipelined(on_ranks), expected)
    assert set(verdicts) == {"go_on", "discard"}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_shared_weight_and_a_connection_over_stages(
    recompute: bool, monkeypatch: pytest.MonkeyPatch, verdicts: list[str]
) -> None:
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    config = changed(model=ModelConfig("tied_skip", hidden=(6,) * 6), clip_norm=1.5)
    choices = {"name": "zb_h2", "validate": "after", "recompute": recompute}
    assert_same(pipelined(on_mesh(config, 1, 4, **choices)), alone(config))
    assert set(verdicts) == {"go_on", "discard"}


@pytest.mark.parametrize(
    ("name", "validate", "early"),
    [
        ("zb_h2", "auto", True),
        ("zb_v", "auto", True),
        ("one_f_one_b", "auto", False),
        ("zb_h2", "before", False),
        ("one_f_one_b", "after", True),
    ],
)
def test_who_is_validated_after_the_update(name: str, validate: str, early: bool) -> None:
    config = on_mesh(changed(), 1, 4, name=name, validate=validate)

    def body(comm: Communicator) -> bool:
        trainer: Trainer = build_trainer(config, build_mesh(config, comm))
        return trainer._train_step._post_validation is not None

    assert run_ranks(4, body) == [early] * 4
