"""Stages cut by what blocks take: times that grow with the work, one cut on all ranks."""

import dataclasses
from typing import Any

import pytest
import torch
from pipeline_world import assert_same, on_mesh, settings, tied_skip, train
from thread_world import run_ranks

from dist_ml.bench.sleeping_model import WIDTH, SleepingModel
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import MeshConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.errors import ConfigError
from dist_ml.models import MLP, MODELS, ModelMember
from dist_ml.pipeline_parallel.stage_graph import output_shapes
from dist_ml.train import build, stage_cuts
from dist_ml.train.block_costs import measured_costs
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.microbatches import largest_microbatch, num_microbatches
from dist_ml.train.trainer import Trainer


@pytest.mark.parametrize("autocast", [False, True])
def test_forward_and_backward_passes_of_each_block_are_timed(autocast: bool) -> None:
    """Of which the second one sleeps in all three parts."""
    with torch.device("meta"):
        model = SleepingModel(3, (0.0, 0.0, 0.0))
    model.layers[1]._seconds = (0.02, 0.02, 0.02)
    sample = torch.zeros(1, WIDTH)
    costs = measured_costs(model, output_shapes(model, sample), sample, 4, autocast)
    assert [cost >= 0.06 for cost in costs] == [False, True, False]
    assert min(costs) > 0
    assert all(parameter.is_meta for parameter in model.parameters())


def test_stages_are_cut_by_the_times_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank would measure other times; with the kernels that training uses, tuned before."""
    asked: list[int | str] = []

    def times(model: MLP, _shapes: object, _sample: object, rows: int, _auto: bool) -> list[float]:
        asked.append(rows)
        others = (len(model.blocks()) - 1) * [1.0]
        return [len(others) + 1.0, *others]

    monkeypatch.setattr(stage_cuts, "measured_costs", times)
    monkeypatch.setattr(build, "tune", lambda _model, rows, _comm: asked.append(f"tuned {rows}"))
    config = on_mesh(settings(batch_size=13), 2, 2, cut="measured", microbatches=3)

    def body(comm: Communicator) -> list[int]:
        trainer: Trainer = build_trainer(config, build_mesh(config, comm))
        assert trainer.pipeline is not None
        return [len(stage.blocks) for stage in trainer.pipeline.stages]

    (cut, *others) = run_ranks(4, body)
    assert cut[0] == 1 < cut[1]
    assert others == 3 * [cut]
    assert asked == [*4 * ["tuned {3}"], 3]  # the largest micro-batch of 13 samples on 2 x 3


@pytest.mark.parametrize(
    ("data", "pipeline", "choices", "changes", "expected"),
    [
        (2, 1, {}, {"accumulation": 3}, 3),
        (2, 2, {}, {}, 2),
        (2, 2, {"microbatches": 3}, {}, 3),
        (1, 2, {"microbatches": 2}, {"batch_size": 1000}, 15),  # all 30 samples that there are
    ],
)
def test_the_largest_micro_batch_is_the_largest_that_any_rank_computes(
    data: int, pipeline: int, choices: dict[str, Any], changes: dict[str, Any], expected: int
) -> None:
    config = on_mesh(settings(**changes), data, pipeline, **choices)
    sizes = {"data": data, "pipeline": pipeline, "operator": 1}
    assert largest_microbatch(config, sizes, 30) == expected
    sampler, cut = GlobalSampler(30, config.batch_size, 0), num_microbatches(config, sizes)
    pieces = [sampler.share(0, 0, r, data, m, cut) for r in range(data) for m in range(cut)]
    assert max(map(len, pieces)) == expected


@pytest.mark.parametrize("model", ["mlp", "transformer", "tied_skip"])
def test_the_numbers_stay_those_of_one_process(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    config = settings()
    if model == "tied_skip":
        config = settings(model=ModelConfig("tied_skip", hidden=(6,) * 6))
    if model == "transformer":
        config = settings(model=ModelConfig("transformer", width=8, depth=1, heads=2, dropout=0.1))
    measured = on_mesh(config, 1, 2, name="zb_h1", cut="measured")
    found = run_ranks(2, lambda comm: train(comm, measured, 3))
    assert_same(found, train(Communicator(Loopback()), config, 3))


def test_what_it_has_no_effect_with_is_refused() -> None:
    by_hand = on_mesh(settings(), 1, 2, cut="measured", stages=("layers.0", "layers.7"))
    with pytest.raises(ConfigError, match=r"pipeline\.cut=measured has no effect .* by hand"):
        build_trainer(
            by_hand,
            build_mesh(
                dataclasses.replace(by_hand, mesh=MeshConfig(1, 1, 1)), Communicator(Loopback())
            ),
        )
    shared = on_mesh(settings(), 1, 2, cut="measured")
    shared = dataclasses.replace(shared, mesh=MeshConfig(1, 2, 2))

    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError) as caught:
            build_trainer(shared, build_mesh(shared, comm))
        return str(caught.value)

    for message in run_ranks(4, body):
        assert "with mesh.operator=2 holds parts of them; use pipeline.cut=modelled" in message
