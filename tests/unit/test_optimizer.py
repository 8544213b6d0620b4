"""Learning-rate schedules and optimizers by configuration."""

import pytest
import torch

from dist_ml.config.train import LRScheduleConfig, OptimizerConfig
from dist_ml.errors import ConfigError
from dist_ml.train.optimizer import build_optimizer, rate_factor


def test_cosine_rises_to_one_and_falls_to_what_is_left() -> None:
    factor = rate_factor(LRScheduleConfig("cosine", warmup_fraction=0.1, final_fraction=0.2), 100)
    assert factor(0) == pytest.approx(1 / 11)
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.6)
    assert factor(100) == factor(101) == pytest.approx(0.2)
    assert all(factor(step) >= factor(step + 1) for step in range(10, 100))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_short_runs_have_a_schedule_too(num_steps: int) -> None:
    factor = rate_factor(
        LRScheduleConfig("cosine", warmup_fraction=0.9, final_fraction=0.0), num_steps
    )
    assert all(0 < factor(step) <= 1 for step in range(num_steps))


def test_constant_stays() -> None:
    assert rate_factor(LRScheduleConfig("constant", 0.0, 1.0), 10)(7) == 1.0


@pytest.mark.parametrize(
    ("name", "reference"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]
)
def test_the_fused_optimizer_is_torchs(name: str, reference: type[torch.optim.Optimizer]) -> None:
    config = OptimizerConfig(
        name, lr=0.1, weight_decay=0.01, momentum=0.9 if name == "sgd" else 0.0
    )  # type: ignore[arg-type]
    ours, theirs = (
        torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in range(2)
    )
    mine = build_optimizer(config, [ours])
    plain = reference(
        [theirs], lr=0.1, weight_decay=0.01, **({"momentum": 0.9} if name == "sgd" else {})
    )  # type: ignore[call-arg]
    for _ in range(3):
        ours.grad, theirs.grad = ours.detach().square(), theirs.detach().square()
        mine.step()
        plain.step()
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"momentum": 1.0}, "momentum=1.0 must be in"),
        ({"nesterov": True}, "needs momentum"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"weight_decay": -1.0}, "at least 0"),
    ],
)
def test_impossible_optimizers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**{"name": "sgd", "lr": 0.1, "weight_decay": 0.0, **changes})  # type: ignore[arg-type]
