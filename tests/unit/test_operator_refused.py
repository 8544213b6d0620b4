"""What the operator axis can't do is told in words before training, by all ranks."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from operator_world import SHALLOW, on_mesh
from pipeline_world import settings
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DataError, DistMLError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.model_weights import load_state

DECODER = settings(
    model=ModelConfig("transformer", width=12, depth=2, heads=3),
    data=DataConfig("text", num_tokens=9, test_fraction=0.1, num_train=30, num_test=17),
)
CNN = settings(
    model=ModelConfig("cnn", channels=(6, 9), groups=3, blocks_per_stage=1),
    data=DataConfig("digits", num_train=30, num_test=17, test_every=5),
)


def told(config: TrainConfig, num_ranks: int) -> str:
    """The one message that all ranks raise."""

    def build(comm: Communicator) -> str:
        with pytest.raises(DistMLError) as caught:
            build_trainer(config, build_mesh(config, comm))
        assert caught.value.agreed
        return str(caught.value)

    messages = set(run_ranks(num_ranks, build))
    assert len(messages) == 1
    return messages.pop()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layout": "4d"}, "operator_parallel.layout=4d is not one of auto, 1d, "),
        ({"layers": {"layers.0": "1e"}}, "operator_parallel.layers.layers.0=1e is not one of 1d, "),
        ({"layers": {"conv": "1d"}}, "operator_parallel.layers.conv names no layer of the model"),
        ({"layout": "2d", "grid": (3, 2)}, r"grid=\[3, 2\] must be 2 sides \(rows, first\) of "),
        ({"layout": "1d", "grid": (2, 2)}, r"grid=\[2, 2\] must be 1 side \(first\) of layout=1d"),
        ({"layout": "auto", "grid": (4,)}, r"grid=\[4\] has no effect with layout=auto"),
        ({"layout": "2d", "layers": {"layers.1": "1d"}}, "needs another grid than layout=2d"),
    ],
)
def test_a_layout_or_grid_that_cannot_be(choices: dict[str, Any], message: str) -> None:
    config = on_mesh(settings(model=SHALLOW), 1, 1, 4, **choices)
    assert re.search(message, told(config, 4))


@pytest.mark.parametrize(
    ("config", "choices", "message"),
    [
        (DECODER, {"layers": {"layers.0.attention.qkv": "whole"}}, "outputs of layers.0.attention"),
        (DECODER, {"layers": {"layers.1": "1d_sharded"}}, "outputs of layers.1.attention lie un"),
        (DECODER, {"layers": {"embedding": "whole"}}, "can't have embedding whole, only linear"),
        (CNN, {"layers": {"stages.1": "whole"}}, "can't have stages.1.0.conv1 whole"),
        (CNN, {"layers": {"stages.1.0.conv": "1d"}}, "layers.stages.1.0.conv names no layer"),
    ],
)
def test_a_layer_that_would_not_lie_as_its_neighbours(
    config: TrainConfig, choices: dict[str, Any], message: str
) -> None:
    assert message in told(on_mesh(config, 1, 1, 2, **choices), 2)


@pytest.mark.parametrize(
    ("changes", "mesh", "choices", "message"),
    [
        ({"data_parallel": {"name": "periodic"}}, (2, 1, 2), {}, "is not built for mesh.operator"),
        ({"data_parallel": {"name": "daso"}}, (2, 1, 2), {}, "is not built for mesh.operator=2"),
        (
            {"sparse": {"allreduce": "oktopk"}},
            (1, 1, 2),
            {"layout": "2.5d"},
            "sparse=oktopk has nothing to select from with operator_parallel.layout=2.5d",
        ),
        ({}, (1, 2, 2), {"layout": "2d", "schedule": "gpipe"}, "use 1d with mesh.pipeline above"),
        ({}, (2, 1, 1), {"layout": "2d"}, "has no effect with mesh.operator=1"),
    ],
)
def test_what_does_not_go_together(
    changes: dict[str, Any], mesh: tuple[int, int, int], choices: dict[str, Any], message: str
) -> None:
    config = on_mesh(settings(model=SHALLOW, **changes), *mesh, **choices)
    num_ranks = mesh[0] * mesh[1] * mesh[2]
    assert message in told(config, num_ranks)


def test_sides_below_one() -> None:
    with pytest.raises(ConfigError, match="must be of sides of at least 1 rank"):
        OperatorConfig(grid=(2, 0))


def test_a_plain_state_dict_goes_in_and_comes_out() -> None:
    """Into every rank's parts of any layout; another model's is refused."""
    config = on_mesh(settings(model=SHALLOW), 1, 1, 4, layout="3d")
    other = dataclasses.replace(config, seed=9)

    def exchange(comm: Communicator) -> None:
        trainer = build_trainer(config, build_mesh(config, comm))
        state = comm.broadcast_object(trainer.weights(), 0)
        filled = build_trainer(other, build_mesh(other, comm))
        load_state(filled.model, state)
        again = comm.broadcast_object(filled.weights(), 0)
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
        with pytest.raises(DataError, match=r"of another model: layers.0.weight is in only one"):
            load_state(filled.model, {k: v for k, v in state.items() if k != "layers.0.weight"})
        wrong = {**state, "layers.1.bias": torch.zeros(1)}
        with pytest.raises(DataError, match=r"layers.1.bias is \[1\] there, but \[6\] here"):
            load_state(filled.model, wrong)

    run_ranks(4, exchange)
