"""Steps whose update comes before their validation are those of one process, whatever the ranks
agree on: clipped, skipped, taken as they are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
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


def test_one_that_ends_the_run_ends_it_on_all_ranks() -> None:
    """In the step it is of, and nobody's message is left behind."""
    config = validated_after(changed(nonfinite="stop", clip_norm=None), 1, 4, "zb_h2")

    def body(comm: Communicator) -> tuple[str, int]:
        trainer = build_trainer(config, build_mesh(config, comm))
        poison(trainer)
        with pytest.raises(NonFiniteError) as caught:
            list(trainer.epoch(0))
        return str(caught.value), trainer.num_steps

    found = run_ranks(4, body)
    assert found == [found[0]] * 4
    assert f"epoch 0, step {found[0][1]} on all ranks" in found[0][0]
    assert found[0][1] == [*alone(changed(), look=poison).skipped].index(True)


def test_a_step_that_has_begun_may_be_dropped() -> None:
    """Evaluating between any two steps changes nothing."""
    config = validated_after(changed(clip_norm=None), 1, 4, "zb_h2")

    def body(comm: Communicator) -> list[float]:
        trainer = build_trainer(config, build_mesh(config, comm))
        losses = []
        for step in trainer.epoch(0):
            losses.append(step.loss)
            trainer.evaluate(trainer.dataset.test)
        trainer.close()
        return losses

    expected = alone(changed(clip_norm=None)).losses[:6]
    for losses in run_ranks(4, body):
        assert losses == pytest.approx(expected, rel=1e-10)


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
