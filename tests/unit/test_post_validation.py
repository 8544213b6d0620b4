"""What may run before the step ahead is validated, who gains by it, and taking a step back."""

from typing import Any

import pytest
import torch
from pipeline_world import SYNCHRONOUS

from dist_ml.pipeline_parallel.dry_run import dependencies
from dist_ml.pipeline_parallel.post_validation import (
    ahead_of_validation,
    gains_by_post_validation,
)
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.pipeline_parallel.schedules.csv_file import parse_csv
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.train.optimizer_copy import OptimizerCopy


def texts(schedule: Schedule) -> list[str]:
    return [" ".join(map(str, actions)) for actions in ahead_of_validation(schedule)]


def test_the_forward_passes_of_the_warm_up_may_run_ahead() -> None:
    """All of them but the last stage's, which adds to the step's loss."""
    schedule = make("zb_h2", Request(3, 5))
    assert texts(schedule) == ["0F0 0F1 0F2 0F3 0F4", "1F0 1F1 1F2", ""]
    assert texts(make("zb_v", Request(2, 4))) == ["0F0 0F1 0F2", "1F0 2F0 1F1 2F1"]
    assert texts(one_stage(3)) == [""]


def test_what_runs_ahead_uses_nothing_that_does_not() -> None:
    """The first rank makes what the second one's 1F1 uses after an action of the last stage."""
    rows = "0F0,2F0,0F1,2F1,2B0,2B1,0B0,0B1\n1F0,1F1,1B0,1B1\n"
    assert texts(parse_csv(rows, "crossed")) == ["0F0", "1F0"]


@pytest.mark.parametrize("num_ranks", [2, 4, 6])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_it_is_closed_under_what_actions_use(name: str, num_ranks: int) -> None:
    schedule = make(name, Request(num_ranks, 2 * num_ranks))
    ahead = ahead_of_validation(schedule)
    present = {action for actions in ahead for action in actions}
    used = dependencies(schedule)
    for rank, actions in enumerate(ahead):
        assert actions == schedule.actions[rank][: len(actions)]
        for action in actions:
            assert action.kind == "F"
            assert action.stage < schedule.num_stages - 1
            assert present.issuperset(used[action])


def test_schedules_that_end_early_on_some_ranks_gain() -> None:
    gain = [n for n in SYNCHRONOUS if gains_by_post_validation(make(n, Request(4, 8)))]
    assert gain == ["zb_h1", "zb_h2", "zb_v", "dualpipe_v"]


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_taken_back_to_the_last_bit(name: str, steps_before: int) -> None:
    """Steps after one that was taken back are those of an optimizer that never took it, also after
    one with NaN.
    """
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(n, generator=generator) for n in (3, 5)]
    gradients = [[torch.randn(n, generator=generator) for n in (3, 5)] for _ in range(6)]

    def run(taken_back: bool) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(values.clone()) for values in start]
        optimizer = OPTIMIZERS[name](parameters)
        copy = OptimizerCopy(optimizer)

        def step(values: list[torch.Tensor], factor: float = 1.0) -> None:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.grad = factor * value
            optimizer.step()

        for number in range(steps_before + 3):
            if taken_back and number >= steps_before:
                copy.save()
                step(gradients[number], float("nan") if number % 2 else 2.0)
                copy.restore()
            step(gradients[number])
        return [parameter.detach() for parameter in parameters]

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, theirs)
