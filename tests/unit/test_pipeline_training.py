"""Training on a mesh of data x pipeline is training in one process: every schedule, and what goes
with it.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_world import (
    DEEP,
    HIDDEN,
    NUM_STEPS,
    SYNCHRONOUS,
    Trained,
    assert_same,
    on_mesh,
    poison,
    settings,
    tied_skip,
    train,
)
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig, TrainConfig
from dist_ml.models import MODELS, ModelMember
from dist_ml.pipeline_parallel.peaks import memory
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

# Schedules on one mesh, and each of them on one or two others.
RUNS = [(2, 2, name) for name in SYNCHRONOUS]
RUNS += [
    (1, 3, "gpipe"), (3, 2, "gpipe"), (1, 5, "one_f_one_b"), (1, 6, "interleaved"),
    (1, 8, "chimera"), (2, 4, "chimera"), (1, 5, "zb_h1"), (2, 3, "zb_h2"), (1, 8, "zb_v"),
    (1, 3, "dualpipe_v"),
]  # fmt: skip


def train_alone(config: TrainConfig, **arguments: Any) -> Trained:
    return train(Communicator(Loopback()), config, **arguments)


def pipelined(config: TrainConfig, **arguments: Any) -> list[Trained]:
    num_ranks = (config.mesh.data or 1) * config.mesh.pipeline
    return run_ranks(num_ranks, lambda comm: train(comm, config, **arguments))


@functools.cache
def alone(num_steps: int = NUM_STEPS, hidden: tuple[int, ...] = HIDDEN) -> Trained:
    return train_alone(settings(hidden), num_steps=num_steps)


@pytest.mark.parametrize(("data", "pipeline", "name"), RUNS)
def test_every_schedule_trains_as_one_process(data: int, pipeline: int, name: str) -> None:
    """In fp64; stages of uneven layers, batches that don't divide, dropout, and every third step
    with fewer samples than micro-batches.
    """
    hidden, num_steps = (HIDDEN, NUM_STEPS) if pipeline <= 4 else (DEEP, 2)
    config = on_mesh(settings(hidden), data, pipeline, name=name)
    assert_same(pipelined(config, num_steps=num_steps), alone(num_steps, hidden))


@pytest.mark.parametrize("data", [1, 2])
def test_some_stages_of_a_file_may_have_copies_and_others_none(data: int, tmp_path: Path) -> None:
    """Both micro-batches begin on rank 0; the last stage of each is on a rank of its own."""
    file = tmp_path / "fork.csv"
    file.write_text("0F0,0F1,0B0,0B1\n1F0,1B0\n1F1,1B1\n")
    config = on_mesh(settings(), data, 3, name="file", file=str(file), microbatches=2)
    config = dataclasses.replace(config, clip_norm=0.1)
    expected = train_alone(dataclasses.replace(settings(), clip_norm=0.1), num_steps=3)
    assert_same(pipelined(config, num_steps=3), expected)


@pytest.mark.parametrize("name", ["gpipe", "chimera", "zb_v"])
def test_fp32_stays_close(name: str) -> None:
    """One whole backward pass, copies, and a backward pass in two parts."""
    assert_same(pipelined(on_mesh(FP32, 1, 2, name=name)), fp32_alone(), 2e-5)


FP32 = settings(precision="fp32")


@functools.cache
def fp32_alone() -> Trained:
    return train_alone(FP32)


@pytest.mark.parametrize("name", ["chimera", "zb_v"])
@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_products_stay_close(name: str, recompute: bool) -> None:
    config = dataclasses.replace(FP32, precision="bf16")
    found = pipelined(on_mesh(config, 1, 2, name=name, recompute=recompute), num_steps=3)
    assert found[0].losses == pytest.approx(fp32_alone().losses[:3], rel=2e-2)
    assert found[0].losses != pytest.approx(fp32_alone().losses[:3], rel=1e-5)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_recomputing_activations_changes_nothing(name: str) -> None:
    config = on_mesh(settings(), 1, 2, name=name, recompute=True)
    assert_same(pipelined(config, num_steps=3), alone(num_steps=3))


@pytest.mark.parametrize("name", ["one_f_one_b", "chimera", "zb_v"])
def test_sends_that_complete_at_once_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.thread_messages.DEFAULT_SENDS", "buffered")
    config = on_mesh(settings(), 1, 2, name=name, recompute=True)
    assert_same(pipelined(config, num_steps=3), alone(num_steps=3))


VARIANTS: dict[str, dict[str, Any]] = {
    "clipped": {"clip_norm": 0.1},
    "adamw": {"optimizer": OptimizerConfig("adamw", lr=0.01, weight_decay=0.1)},
    "clipped adamw": {
        "clip_norm": 0.1,
        "optimizer": OptimizerConfig("adamw", lr=0.01, weight_decay=0.0),
    },
    "regression": {"data": {"task": "regression"}},
    "one sample": {"batch_size": 1},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("name", ["chimera", "zb_v"])
def test_what_the_ranks_must_agree_on(name: str, variant: str) -> None:
    config = on_mesh(settings(**VARIANTS[variant]), 2, 2, name=name)
    assert_same(pipelined(config, num_steps=3), variant_alone(variant))


@functools.cache
def variant_alone(variant: str) -> Trained:
    return train_alone(settings(**VARIANTS[variant]), num_steps=3)


@pytest.mark.parametrize(
    "choices",
    [
        {"name": "interleaved", "chunks": 3},
        {"name": "chimera", "pipes": 4, "microbatches": 4},
        {"name": "chimera", "concatenation": "direct", "microbatches": 8},
        {"name": "chimera", "concatenation": "doubling", "microbatches": 8},
        {"name": "gpipe", "microbatches": 1},
        {"name": "one_f_one_b", "microbatches": 17},
        {"name": "zb_h2", "stages": ("layers.0", "layers.1", "layers.5", "layers.7")},
    ],
    ids=lambda choices: " ".join(f"{key}={value}" for key, value in choices.items())[:40],
)
def test_keys_of_the_pipeline(choices: dict[str, Any]) -> None:
    hidden = DEEP if "chunks" in choices else HIDDEN
    config = on_mesh(settings(hidden), 1, 4, **choices)
    assert_same(pipelined(config, num_steps=3), alone(3, hidden))


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("name", ["chimera", "zb_h1"])
def test_a_step_that_is_not_finite_is_left_out_by_all(name: str, clip_norm: float | None) -> None:
    config = settings(nonfinite="skip", clip_norm=clip_norm)
    found = pipelined(on_mesh(config, 2, 2, name=name), num_steps=4, look=poison)
    assert found[0].skipped == [False, True, False, False]
    assert_same(found, train_alone(config, num_steps=4, look=poison))


def overflow(trainer: Trainer) -> None:
    """The gradient of one parameter of the last layer is infinite in the first step; the loss isn't
    changed.
    """
    times = iter([math.inf])
    for name, parameter in trainer.model.named_parameters():
        if name == "layers.7.bias" and not parameter.is_meta:
            parameter.register_hook(lambda gradient: gradient * next(times, 1.0))  # type: ignore[no-untyped-call]


def test_a_gradient_that_only_one_stage_sees_overflow_is_left_out_by_all() -> None:
    config = settings(nonfinite="skip")
    found = pipelined(on_mesh(config, 1, 4, name="one_f_one_b"), num_steps=4, look=overflow)
    assert found[0].skipped == [True, False, False, False]
    assert_same(found, train_alone(config, num_steps=4, look=overflow))


EXCHANGES: dict[str, dict[str, Any]] = {
    "zero1": {"data_parallel": {"name": "zero1"}},
    "zero2": {"data_parallel": {"name": "zero2"}, "allreduce": {"bucket_bytes": 512}},
    "ring": {"allreduce": {"name": "ring"}},
    **{
        f"ring {overlap}": {"allreduce": {"name": "ring", "overlap": overlap, "bucket_bytes": 512}}
        for overlap in ("poll", "thread")
    },
    "sparse": {"sparse": {"allreduce": "allgather", "density": 1.0, "dense_below": 0}},
    "sparse on a thread": {
        "sparse": {"allreduce": "oktopk", "density": 1.0, "dense_below": 0, "overlap": 2},
    },
}
CLIPPED = [*EXCHANGES][:5]


@pytest.mark.parametrize(
    ("name", "exchange"),
    [
        *(
            ("chimera", exchange) for exchange in EXCHANGES
        ),  # copies, which wait for the last action
        *zip(itertools.cycle(["one_f_one_b", "zb_v"]), EXCHANGES, strict=False),
    ],
)
def test_every_exchange_of_the_data_axis(name: str, exchange: str) -> None:
    changes = EXCHANGES[exchange]
    plain = settings(clip_norm=0.1 if exchange in CLIPPED else None)
    found = pipelined(
        on_mesh(settings(clip_norm=plain.clip_norm, **changes), 2, 2, name=name), num_steps=3
    )
    assert_same(found, clipped_alone() if plain.clip_norm else alone(num_steps=3))


@functools.cache
def clipped_alone() -> Trained:
    return train_alone(settings(clip_norm=0.1), num_steps=3)


STAGES = ("layers.0", "layers.3")


def test_what_a_sparse_exchange_sends_does_not_depend_on_the_schedule() -> None:
    """With the same stages, hence the same vectors to choose from."""
    config = settings(sparse={"allreduce": "oktopk", "density": 0.1, "dense_below": 0})
    runs = {
        name: pipelined(on_mesh(config, 2, 2, name=name, stages=STAGES), num_steps=6)
        for name in ("gpipe", "one_f_one_b", "zb_h1")
    }
    first = runs["gpipe"][0]
    assert first.losses != alone(num_steps=6).losses
    for found in runs.values():
        assert_same(found, first)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("one_f_one_b", "torch"), ("chimera", "torch"), ("zb_h1", "numpy"), ("zb_v", "torch")],
)
def test_layers_that_write_their_gradients_themselves(name: str, kernel: str) -> None:
    """Wide enough to have gradient sinks, also where the backward pass is in two parts."""
    model = ModelConfig(hidden=(8, 512, 300, 450, 6), activation="relu", dropout=0.1)
    overlapped = {"name": "ring", "overlap": "poll", "bucket_bytes": 1 << 18}
    config = settings(model=model, kernel=kernel, allreduce=overlapped)
    found = pipelined(on_mesh(config, 2, 2, name=name), num_steps=3)
    assert_same(found, wide_alone(), 1e-9)


@functools.cache
def wide_alone() -> Trained:
    model = ModelConfig(hidden=(8, 512, 300, 450, 6), activation="relu", dropout=0.1)
    return train_alone(settings(model=model), num_steps=3)


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A model whose first and last block share a weight, and with a connection between them."""
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    return settings(model=ModelConfig("tied_skip", hidden=(6,) * 6), clip_norm=0.1)


@pytest.mark.parametrize(
    ("data", "pipeline", "name", "recompute", "overlap"),
    [
        *(
            (1, 4, name, False, "none")
            for name in ("one_f_one_b", "interleaved", "chimera", "zb_v")
        ),
        *((2, 2, name, True, "poll") for name in ("one_f_one_b", "chimera", "zb_h1")),
    ],
)
def test_a_shared_weight_and_a_connection_over_stages(
    tied: TrainConfig, data: int, pipeline: int, name: str, recompute: bool, overlap: str
) -> None:
    expected = train_alone(tied, num_steps=3)
    exchange = {"name": "ring", "overlap": overlap}
    if overlap != "none":
        exchange["bucket_bytes"] = 64  # type: ignore[assignment]
    config = settings(model=tied.model, clip_norm=tied.clip_norm, allreduce=exchange)
    found = pipelined(on_mesh(config, data, pipeline, name=name, recompute=recompute), num_steps=3)
    assert_same(found, expected)
    weights = found[0].weights
    assert weights is not None
    assert torch.equal(weights["parts.enter.tied"], weights["parts.leave.tied"])


@pytest.mark.parametrize("batch_size", [13, 1])
@pytest.mark.parametrize(("data", "name"), [(1, "chimera"), (2, "chimera"), (2, "zb_h1")])
def test_a_weight_that_is_shared_by_copies_of_stages_on_different_ranks(
    tied: TrainConfig, data: int, name: str, batch_size: int
) -> None:
    """Of four stages, the first and the third; with chimera each is on two ranks. Also where a
    replica has no sample.
    """
    model = dataclasses.replace(tied.model, hidden=(6,) * 8)
    config = dataclasses.replace(tied, model=model, batch_size=batch_size)
    stages = ("enter", "middle1", "leave", "after0")
    found = pipelined(on_mesh(config, data, 4, name=name, stages=stages), num_steps=3)
    assert_same(found, train_alone(config, num_steps=3))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_the_most_activations_held_are_those_that_were_proved(name: str) -> None:
    config = on_mesh(settings(batch_size=30), 1, 4, name=name)

    def body(comm: Communicator) -> tuple[int, int]:
        trainer = build_trainer(config, build_mesh(config, comm))
        trainer.step(0, 0)
        assert trainer.pipeline is not None
        runner = trainer._train_step.stages._runner  # type: ignore[attr-defined]
        return runner.peak_kept, memory(trainer.pipeline.schedule).activations[comm.rank]

    for held, proved in run_ranks(4, body):
        assert held == proved
