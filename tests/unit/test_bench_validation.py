"""The benchmark of steps validated before and after their update: its ranks' part at tiny size, its
plans, and its checks on bad data.
"""

from typing import Any

import pytest
import torch

from dist_ml.bench import pipeline_validation, pipeline_validation_part
from dist_ml.bench.configured import to_arguments
from dist_ml.bench.pipeline_plan import planned_steps
from dist_ml.bench.pipeline_validation import ALWAYS, NEVER, THIRD, PipelineValidationBench
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.pipeline_parallel.dry_run import Costs
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from tests.thread_world import run_ranks
from tests.unit.bench_worlds import GivenWorlds, on_threads
from tests.unit.train_worlds import changed

TRAIN = changed(clip_norm=1e4, nonfinite="skip", precision="fp32", optimizer={"momentum": 0.9})
CONFIG = PipelineValidationBench(TRAIN, "mpich", 4, 8, ("zb_h1", "zb_h2"), (1, 1, 1), 6, 3)
CANDIDATES = list(pipeline_validation.candidates_of(CONFIG))


def test_steps_run_both_ways() -> None:
    arguments = {
        "train": to_arguments(TRAIN),
        "candidates": [("zb_h2", "before", NEVER), ("zb_h2", "after", THIRD)],
        "microbatches": 3,
        "seconds": [1e-4] * 3,
        "steps": 4,
        "rounds": 2,
    }
    found = on_threads(2, pipeline_validation_part.measure, arguments)
    assert [len(seconds) for seconds in found] == [2, 2]
    assert all(seconds > 0 for rounds in found for seconds in rounds)


@pytest.mark.parametrize(
    ("clipped", "which"), [(NEVER, set[int]()), (THIRD, {2, 5}), (ALWAYS, set(range(7)))]
)
def test_the_steps_that_are_clipped(
    clipped: int, which: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dist_ml.data_parallel.reduced_gradients import Full

    scaled: list[torch.Tensor] = []
    monkeypatch.setattr(Full, "scale", lambda self, _factor: scaled.append(self))
    found = []

    def body(comm: Communicator) -> None:
        schedule = make("zb_h2", Request(2, 3))
        trainer = pipeline_validation_part.trainer_of(
            comm, TRAIN, schedule, (0, 0, 0), 7, clipped, "after"
        )
        for one in trainer.epoch(0):
            assert not one.skipped
            if comm.rank == 0:
                found.append(one.number)

    run_ranks(2, body)
    assert found == [*range(7)]
    assert len(scaled) == 2 * len(which)


@pytest.mark.parametrize(
    ("name", "step", "to_come"),
    [("one_f_one_b", 33, 0), ("zb_h1", 27, 0), ("zb_h2", 24, 3), ("zb_v", 24, 1.5)],
)
def test_steps_after_each_other(name: str, step: float, to_come: float) -> None:
    """METHODS: with validation after the update a step takes its longest rank's span, and a run the
    rest of one step; with validation before it each step takes all. Units: F = I = W = 1 of a
    rank.
    """
    schedule = make(name, Request(4, 8))
    part = 4 / schedule.num_stages
    costs = Costs.of_parts(schedule.num_stages, [part] * 3)
    for waiting, expected in (
        (range(5), 5 * (step + to_come)),
        ((), 5 * step + to_come),
        ((2,), 5 * step + 2 * to_come),
    ):
        planned = planned_steps(schedule, costs, 5, lambda number, w=waiting: number in w)  # type: ignore[misc]
        assert planned == pytest.approx(expected)


def found(config: PipelineValidationBench = CONFIG, **factors: float) -> list[list[float]]:
    """As the ranks would find it if each step took its planned time, times `factors` of the ways to
    validate.
    """
    return [
        [factors.get(candidate[1], 1.0) * pipeline_validation.planned_step(config, candidate)] * 3
        for candidate in CANDIDATES
    ]


def rows(**factors: float) -> Any:
    return pipeline_validation.run(CONFIG, GivenWorlds({"pipeline_validation": found(**factors)}))


def test_what_is_as_planned_passes() -> None:
    """In steps of one millisecond units: 1F1B takes 32 (its first stage has no input gradient),
    H1 and H2 27 up to a common end, and H2 24 where ranks go on.
    """
    result = rows()
    assert result.passed
    by_way = {(r["schedule"], r["validate"], r["clipped"]): r for r in result.records}
    assert by_way["one_f_one_b", "before", "none"]["planned_ms"] == pytest.approx(32)
    assert by_way["zb_h2", "before", "none"]["planned_ms"] == pytest.approx(27)
    assert by_way["zb_h2", "after", "none"]["planned_ms"] == pytest.approx(24.5)
    assert by_way["zb_h2", "after", "each"]["planned_ms"] == pytest.approx(27)
    assert by_way["zb_h2", "after", "each third"]["planned_ms"] == pytest.approx(24 + 3 * 3 / 6)
    gains = [by_way["zb_h2", way, "none"]["planned_gain"] for way in ("before", "after")]
    assert gains == pytest.approx([5 / 8, 7.5 / 8])
    assert [r["gains_early"] for r in result.records] == [False] + 8 * [True]


@pytest.mark.parametrize(
    ("factors", "failed"),
    [
        (
            {"after": 1.04},
            {"step over one validated before its update", "part of the planned gain"},
        ),
        ({"before": 1.1, "after": 1.06}, {"step over its plan"}),
        ({"after": float("nan")}, {"step over its plan", "step over one", "part of the planned"}),
    ],
    ids=["slower", "late", "nan"],
)
def test_what_is_slower_fails(factors: dict[str, float], failed: set[str]) -> None:
    names = [check.name for check in rows(**factors).checks if not check.passed]
    for words in failed:
        assert any(words in name for name in names), (words, names)


def test_one_step_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps=1 must be at least 2"):
        PipelineValidationBench(TRAIN, "mpich", 4, 8, ("zb_h1",), (1, 1, 1), 1, 3)
