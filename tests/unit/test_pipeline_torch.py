"""Schedules to and from `torch.distributed.pipelining`: what torch makes loads here and is proved,
what is made here passes torch's validation; and wrong ones that torch lets pass are refused.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import schedules as theirs

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedules import csv_file, family
from dist_ml.pipeline_parallel.schedules.csv_file import parse_csv
from dist_ml.pipeline_parallel.schedules.request import Request

# by torch's name: stages of rank r of P
LOOPED = lambda rank, ranks: (rank, rank + ranks)  # noqa: E731
V_SHAPED = lambda rank, ranks: (rank, 2 * ranks - 1 - rank)  # noqa: E731
MADE_BY_TORCH = {
    "ScheduleInterleaved1F1B": LOOPED,
    "ScheduleInterleavedZeroBubble": LOOPED,
    "ScheduleLoopedBFS": LOOPED,
    "ScheduleZBVZeroBubble": V_SHAPED,
    "ScheduleDualPipeV": V_SHAPED,
}


def stage(number: int, num_stages: int, rank: int, ranks: int) -> Any:
    """As much of a torch stage as making a schedule looks at."""
    return SimpleNamespace(
        stage_index=number,
        num_stages=num_stages,
        group_size=ranks,
        group_rank=rank,
        group=None,
        is_first=number == 0,
        is_last=number == num_stages - 1,
        has_backward=True,
        submod=torch.nn.Identity(),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (2, 10), (4, 8), (3, 12)])
@pytest.mark.parametrize("name", MADE_BY_TORCH)
def test_torchs_own_schedules_load_and_are_proved(
    name: str, ranks: int, microbatches: int, tmp_path: Path
) -> None:
    stages = [stage(s, 2 * ranks, 0, ranks) for s in MADE_BY_TORCH[name](0, ranks)]
    made = getattr(theirs, name)(stages, microbatches, loss_fn=lambda *_: 0)
    file = tmp_path / f"{name}.csv"
    made._dump_csv(str(file), format="compute_only")
    schedule = csv_file.read_csv(file)
    prove(schedule)
    assert (schedule.num_stages, schedule.num_microbatches) == (2 * ranks, microbatches)
    for rank in range(ranks):
        assert set(schedule.stages_of(rank)) == set(MADE_BY_TORCH[name](rank, ranks))
    again = family.make("file", Request(ranks, microbatches, file=str(file)))
    assert again.actions == schedule.actions


def torch_order(text: str) -> dict[int, list[Any]]:
    """A CSV as torch holds it."""
    return {
        rank: [theirs._Action.from_str(cell) for cell in row.split(",")]
        for rank, row in enumerate(text.strip().splitlines())
    }


@pytest.mark.parametrize(
    "name", ["gpipe", "one_f_one_b", "interleaved", "zb_h1", "zb_h2", "zb_v", "dualpipe_v"]
)
def test_ours_pass_torchs_validation_and_simulation(name: str) -> None:
    schedule = family.make(name, Request(4, 8))
    order = torch_order(csv_file.write_csv(schedule))
    places = theirs._validate_schedule(order, 4, schedule.num_stages, 8)
    assert places == {s: schedule.pipes[0][s] for s in range(schedule.num_stages)}
    with_messages = theirs._add_send_recv(order, lambda s: places[s], schedule.num_stages)
    simulated = theirs._simulate_comms_compute(
        with_messages, lambda s: places[s], schedule.num_stages
    )
    assert sorted(simulated) == [0, 1, 2, 3]


# Torch counts, it doesn't compare: a backward pass of micro-batch 1 is missing while one of
# micro-batch 0 is there twice; a forward pass is there twice, which a set doesn't show.
WRONG = {
    "twice back, once not": ("0F0,0F1,0B0,0I0,0W0\n", "0I0 repeats a part of 0B0"),
    "twice forward": ("0F0,0F0,0F1,0B0,0B1\n", "0F0 is there twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_schedules_that_torch_accepts_are_refused(name: str) -> None:
    text, message = WRONG[name]
    theirs._validate_schedule(torch_order(text), 1, 1, 2)  # no complaint
    with pytest.raises(ScheduleError, match=message):
        prove(parse_csv(text, name))
