"""A CNN on a mesh of data x pipeline trains as one process does: in fp64, with dropout, on batches
that don't divide.
"""

import functools
from typing import Any

import pytest
from pipeline_world import Trained, assert_same, on_mesh, train
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.train.build import build_mesh, build_trainer
from tests.image_world import on_digits

NUM_STEPS = 3


@functools.cache
def alone(precision: str = "fp64", accumulation: int = 1) -> Trained:
    config = on_digits(precision=precision, accumulation=accumulation)
    return train(Communicator(Loopback()), config, NUM_STEPS)


@pytest.mark.parametrize(
    ("data", "pipeline", "choices"),
    [
        (3, 1, {}),
        (1, 2, {"name": "gpipe"}),
        (1, 3, {"name": "one_f_one_b", "recompute": True}),
        (1, 2, {"name": "interleaved"}),
        (2, 2, {"name": "chimera"}),
        (1, 4, {"name": "zb_h1"}),
        (2, 2, {"name": "zb_v", "microbatches": 5}),
    ],
    ids=lambda value: value.get("name", "whole") if isinstance(value, dict) else str(value),
)
def test_a_mesh_trains_as_one_process(data: int, pipeline: int, choices: dict[str, Any]) -> None:
    config = on_mesh(on_digits(), data, pipeline, **choices)
    found = run_ranks(data * pipeline, lambda comm: train(comm, config, NUM_STEPS))
    assert_same(found, alone())


def test_micro_batches_change_nothing() -> None:
    assert_same([alone(accumulation=4)], alone())


def test_fp32_stays_close() -> None:
    config = on_mesh(on_digits(precision="fp32"), 1, 2, name="one_f_one_b")
    found = run_ranks(2, lambda comm: train(comm, config, NUM_STEPS))
    assert_same(found, alone("fp32"), 2e-5)


def test_stages_begin_at_residual_blocks() -> None:
    stages = ("stem", "stages.1.0")
    config = on_mesh(on_digits(), 1, 2, name="gpipe", stages=stages)

    def body(comm: Communicator) -> list[str]:
        trainer = build_trainer(config, build_mesh(config, comm))
        return [name for name, p in trainer.model.named_parameters() if not p.is_meta]

    first, second = run_ranks(2, body)
    assert {name.split(".conv")[0].split(".norm")[0] for name in first} == {
        "stem",
        "stages.0.0",
        "stages.0.1",
    }
    assert not set(first) & set(second)
