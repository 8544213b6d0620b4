"""A planned step: its words are those that ranks send, its memory what autograd keeps."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from operator_world import SHALLOW, on_mesh
from pipeline_world import settings
from text_world import text_config
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.errors import DistMLError
from dist_ml.models import Samples, build_model
from dist_ml.models.blocks import INPUTS, BlockRun
from dist_ml.plan.model_work import block_works
from dist_ml.plan.operators import recorded, without_data
from dist_ml.plan.step_memory import rank_bytes
from dist_ml.plan.step_plan import plan_step
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.interval import Interval

TEXT = Samples((16,), 32, "next_token")
TRANSFORMER = ModelConfig("transformer", width=24, depth=2, heads=3, activation="gelu")


def counted(comm: Communicator, config: TrainConfig) -> dict[str, int]:
    """Words that this rank sends in one step, by axis, from its ledger."""
    trainer = build_trainer(config, build_mesh(config, comm))
    interval = Interval(trainer)
    trainer.step(0, 0)
    found = {axis: int(words) for axis, words in interval.words_by_axis().items()}
    trainer.close()
    return found


@pytest.mark.parametrize(
    ("data", "pipeline", "operator", "choices"),
    [
        (3, 1, 1, {}),
        (1, 3, 1, {"schedule": "one_f_one_b"}),
        (1, 2, 1, {"schedule": "chimera"}),
        (1, 1, 3, {}),
        (1, 1, 4, {"layout": "2d"}),
        (1, 1, 8, {"layout": "3d"}),
        (2, 2, 2, {"schedule": "zb_v"}),
    ],
)
def test_words_are_those_of_the_rank_that_sends_most(
    data: int, pipeline: int, operator: int, choices: dict[str, Any]
) -> None:
    config = on_mesh(settings(model=SHALLOW), data, pipeline, operator, **choices)
    pieces = data * 2 * (2 * pipeline if pipeline > 1 else 1)
    config = dataclasses.replace(config, batch_size=pieces)
    planned = plan_step(config, data * pipeline * operator).words
    found = run_ranks(data * pipeline * operator, lambda comm: counted(comm, config))
    for axis, words in planned.items():
        assert words == max(ledger[axis] for ledger in found), axis


def test_a_parameter_that_stages_share_is_counted_and_sent_once() -> None:
    config = on_mesh(text_config(model={"tied": True}), 1, 2, 1, schedule="one_f_one_b")
    config = dataclasses.replace(config, batch_size=8)
    plan = plan_step(config, 2)
    alone = plan_step(
        dataclasses.replace(config, mesh=MeshConfig(1, 1, 1), pipeline=PipelineConfig()), 1
    )
    (places,) = plan.graph.shared
    shared = places[0].parameter.numel()
    assert plan.num_parameters(0) + plan.num_parameters(1) == alone.num_parameters(0) + shared
    found = run_ranks(2, lambda comm: counted(comm, config))
    assert plan.words["pipeline"] == max(ledger["pipeline"] for ledger in found)


def test_words_that_depend_on_the_run_are_not_told() -> None:
    local = dataclasses.replace(settings().data_parallel, name="periodic")
    config = dataclasses.replace(on_mesh(settings(model=SHALLOW), 2, 1, 1), data_parallel=local)
    assert plan_step(config, 2).words == {}


def test_operators_are_recorded_with_their_products() -> None:
    with without_data():
        x, weight = torch.empty(3, 4, requires_grad=True), torch.empty(5, 4, requires_grad=True)
        with recorded([weight]) as record:
            y = torch.relu(x @ weight.T).view(15)
        assert [operator.name for operator in record.operators] == ["mm", "relu"]
        product, relu = record.operators
        assert (product.product, product.flops) == ((3, 5, 4), 2 * 3 * 5 * 4)
        assert (relu.product, relu.num_bytes) == (None, 2 * 60)
        assert record.kept_bytes == x.numel() * 4 + y.numel() * 4
        with recorded([]) as back:
            y.backward(torch.empty_like(y))
    backward = sorted((op.layout, op.product) for op in back.operators if op.product)
    assert (product.layout, backward) == ("NT", [("NN", (3, 4, 5)), ("TN", (5, 4, 3))])
    with without_data(), recorded([]) as record:
        torch.empty(3, dtype=torch.complex64) * 2
    assert [operator.name for operator in record.operators] == ["mul of complex numbers"]


@pytest.mark.parametrize(
    ("config", "samples"),
    [
        (ModelConfig("mlp", hidden=(40, 24)), Samples((12,), 5)),
        (TRANSFORMER, TEXT),
        (ModelConfig("cnn", channels=(8, 16)), Samples((1, 8, 8), 4)),
    ],
    ids=["mlp", "transformer", "cnn"],
)
def test_what_is_kept_is_what_autograd_keeps(config: ModelConfig, samples: Samples) -> None:
    """Of a real pass over the same model, counted by storage."""
    b = 6
    model = build_model(config, samples, seed=0)
    ids = torch.zeros(b, samples.num_features, dtype=torch.int64)
    inputs = ids if samples.task == "next_token" else torch.rand(b, samples.num_features)
    held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # alive, so that none is used again
        return tensor

    model.context.set(0, np.arange(b))
    values = {INPUTS: inputs}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        BlockRun(model.blocks(), [block.name for block in model.blocks()])(values)
    with torch.device("meta"):
        planned = build_model(config, samples, seed=0)
    works, outputs = block_works(planned, inputs[:1], b, autocast=False)
    assert outputs.shape == values[model.blocks()[-1].name].shape
    assert sum(work.num_parameters for work in works) == model.num_parameters
    # a block's input may be kept by the block before it, too
    shared = sum(work.output_bytes for work in works[:-1]) + inputs.numel() * inputs.element_size()
    found = sum(size for size, _ in kept.values())
    assert found <= sum(work.kept_bytes for work in works) <= found + shared


def test_memory_of_a_rank() -> None:
    config = settings(model=SHALLOW)
    alone = plan_step(config, 1)
    held, n = rank_bytes(alone), alone.num_parameters(0)
    assert held["parameters"] == held["gradients"] == alone.word_bytes * n
    zero = dataclasses.replace(
        on_mesh(config, 4, 1, 1),
        data_parallel=dataclasses.replace(config.data_parallel, name="zero2"),
    )
    sharded = rank_bytes(plan_step(zero, 4))
    assert sharded["parameters"] == held["parameters"]
    assert 4 * sharded["gradients"] == pytest.approx(held["gradients"], rel=0.01)


@pytest.mark.parametrize(("schedule", "most"), [("gpipe", 8), ("one_f_one_b", 3)])
def test_activations_under_way_are_the_schedules(schedule: str, most: int) -> None:
    config = on_mesh(settings(model=SHALLOW), 1, 3, 1, schedule=schedule)
    config = dataclasses.replace(
        config, pipeline=dataclasses.replace(config.pipeline, microbatches=8), batch_size=32
    )
    plan = plan_step(config, 3)
    first = plan.stages[0].kept_bytes + plan.batch_bytes
    assert rank_bytes(plan, 0)["activations"] == most * first


def test_what_a_run_would_refuse_is_refused() -> None:
    with pytest.raises(DistMLError, match="mesh"):
        plan_step(on_mesh(settings(model=SHALLOW), 2, 2, 2, schedule="gpipe"), 4)
    with pytest.raises(DistMLError, match="stages"):
        plan_step(on_mesh(settings(model=SHALLOW), 1, 64, 1, schedule="gpipe"), 64)
