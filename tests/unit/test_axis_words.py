"""Words of each axis of a step, planned, are what the ledger holds."""

from typing import Any

import pytest
from operator_world import SHALLOW, on_mesh
from pipeline_world import settings
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.train.axis_words import planned_words
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.interval import Interval


def words(comm: Communicator, config: TrainConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Planned and counted, a step, over one epoch."""
    mesh = build_mesh(config, comm)
    trainer = build_trainer(config, mesh)
    interval = Interval(trainer)
    for _ in trainer.epoch(0):
        pass
    steps = trainer.sampler.steps_per_epoch
    counted = {axis: count / steps for axis, count in interval.words_by_axis().items()}
    planned = planned_words(config, trainer)
    trainer.close()
    return planned, counted


@pytest.mark.parametrize(
    ("data", "pipeline", "operator", "choices"),
    [
        (3, 1, 1, {}),
        (1, 3, 1, {"schedule": "one_f_one_b"}),
        (1, 2, 1, {"schedule": "chimera"}),
        (1, 3, 1, {"schedule": "pipedream_2bw"}),
        (1, 1, 3, {}),
        (1, 1, 3, {"layers": {"layers.0": "whole"}}),
        (1, 1, 4, {"layout": "2d"}),
        (1, 1, 8, {"layout": "3d"}),
        (2, 2, 2, {"schedule": "zb_v"}),
    ],
)
def test_what_is_planned_is_what_is_counted(
    data: int, pipeline: int, operator: int, choices: dict[str, Any]
) -> None:
    config = on_mesh(settings(model=SHALLOW), data, pipeline, operator, **choices)
    for planned, counted in run_ranks(data * pipeline * operator, lambda comm: words(comm, config)):
        assert planned == {axis: pytest.approx(counted[axis]) for axis in planned}
        sizes = {"data": data, "pipeline": pipeline, "operator": operator}
        assert set(planned) == {axis for axis, size in sizes.items() if size > 1}
