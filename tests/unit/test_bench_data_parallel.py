"""`dist-ml bench data_parallel`: its part at tiny size, and what is made of its figures."""

import dataclasses
from typing import Any

import pytest
import torch

from dist_ml.bench import data_parallel, data_parallel_part, user_models
from dist_ml.bench.data_parallel_part import DDP, OURS, OVER_US, PLAIN
from dist_ml.bench.user_models import UserModel
from dist_ml.cli import arguments, compose
from dist_ml.config.convert import from_mapping
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import GivenWorlds, alone

CONFIG = from_mapping(
    data_parallel.DataParallelBench,
    compose.composed(arguments.parse([], "data_parallel", "bench/data_parallel")),
)


def tiny() -> torch.nn.Module:
    return torch.nn.Linear(3, 2)


def few(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, generator=generator), torch.zeros(count, dtype=torch.long)


def test_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(user_models.USER_MODELS, "tiny", UserModel(tiny, few))
    arguments = {"model": "tiny", "batch": 4, "rounds": 2, "steps": 1}
    found = alone(data_parallel_part.measure, arguments)
    assert {name: len(values) for name, values in found["seconds"].items()} == {OURS: 2, PLAIN: 2}
    assert (found["loss"], found["parameters"]) == (0.0, 8)


@pytest.mark.parametrize("name", user_models.USER_MODELS)
def test_the_models_have_a_loss(name: str) -> None:
    model = user_models.USER_MODELS[name]
    with torch.device("meta"):
        module = model.build()
    assert 6e6 < sum(parameter.numel() for parameter in module.parameters()) < 3e7
    inputs, targets = model.batch(2, torch.Generator())
    outputs = module(inputs.to("meta"))
    assert outputs.shape[0] == targets.shape[0]


def failed(over_ddp: float, over_plain: float, loss: float) -> list[str]:
    def found(ranks: int, _: Any) -> dict[str, Any]:
        other, over = (DDP, over_ddp) if ranks > 1 else (PLAIN, over_plain)
        seconds = {OURS: [over, over], OVER_US: [0.5, 0.5], other: [1.0, 1.0]}
        return {"seconds": seconds, "loss": loss, "parameters": 8}

    config = dataclasses.replace(CONFIG, models=("cnn",))
    result = data_parallel.run(config, GivenWorlds({"data_parallel": found}))
    return [check.name for check in result.checks if not check.passed]


def test_a_slow_step_and_losses_apart_are_found() -> None:
    assert failed(0.5, 1.0, 1e-6) == []
    assert failed(0.9, 1.0, 0.0) == ["step over ddp gloo, cnn, 2 ranks"]
    assert failed(0.5, 1.2, 0.0) == ["step over plain PyTorch, cnn, 1 rank"]
    assert len(failed(0.5, 1.0, 1e-2)) == 2


def test_an_unknown_model_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="perceptron, cnn, tied"):
        dataclasses.replace(CONFIG, models=("bert",))
