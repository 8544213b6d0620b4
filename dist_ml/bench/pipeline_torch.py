"""`dist-ml bench pipeline_torch`: a pipeline's step by our executor over MPI and by
`torch.distributed.pipelining` over gloo, and what our executor costs by itself.

Same stages, schedule and micro-batches, in the same processes, in turn: stages that sleep, and
stages that compute. Timed: forward and backward passes of a step, without an optimizer.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.pipeline_torch_part import LOOP, OURS, TORCH, measure, measure_executor
from dist_ml.bench.worlds import Worlds
from dist_ml.measure.compare import difference, ratio

COMPUTES = "computes"


@dataclass(frozen=True)
class PipelineTorchBench:
    """What to run."""

    mpi: str
    ranks: int
    microbatches: int
    schedules: tuple[str, ...]
    sleeping_milliseconds: tuple[float, ...]  # of a stage's forward pass; going back takes twice
    width: int  # of the layers of stages that compute
    batch: int  # their samples in a step
    steps: int  # a round
    rounds: int  # of alternation
    executor_microbatches: int  # of the step that tells what the executor costs


def run(config: PipelineTorchBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    stages = [*(f"{value:g} ms" for value in config.sleeping_milliseconds), COMPUTES]
    for schedule in config.schedules:
        for stage, value in zip(stages, [*config.sleeping_milliseconds, 0.0], strict=True):
            seconds = _compared(config, worlds, schedule, value)
            found = row(schedule, stage, seconds)
            records.append(found)
            limit = 0.7 if stage == "1 ms" else 1.0
            name = f"step over torch's, {schedule}, {stage}"
            checks.append(Check(name, found["ours_over_torch"], limit, "lower"))
    many = config.executor_microbatches
    seconds, actions = _one_stage(config, worlds, microbatches=many, width=16, batch=many)
    cost = 1e6 * difference(seconds[OURS], seconds[LOOP]).median / actions
    records.append({"schedule": "one stage", "stage": "executor", "us_an_action": cost})
    checks.append(Check("the executor's microseconds an action", cost, 30.0, "lower"))
    seconds, _ = _one_stage(config, worlds, config.microbatches, config.width, config.batch)
    over = ratio(seconds[OURS], seconds[LOOP]).median
    records.append({"schedule": "one stage", "stage": COMPUTES, "over_plain_step": over})
    checks.append(Check("a one-stage pipeline's step over the plain step", over, 1.01, "lower"))
    return Result("pipeline_torch", records, checks)


def row(schedule: str, stage: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """One comparison."""
    found = ratio(seconds[OURS], seconds[TORCH])
    return {
        "schedule": schedule,
        "stage": stage,
        "ours_ms": 1e3 * statistics.median(seconds[OURS]),
        "torch_ms": 1e3 * statistics.median(seconds[TORCH]),
        "ours_over_torch": found.median,
        "low": found.low,
        "high": found.high,
    }


def _compared(
    config: PipelineTorchBench, worlds: Worlds, schedule: str, milliseconds: float
) -> Mapping[str, Sequence[float]]:
    part = 1e-3 * milliseconds
    arguments = {
        "schedule": schedule,
        "microbatches": config.microbatches,
        "seconds": [part, part, part] if milliseconds else [],
        "width": config.width,
        "batch": config.microbatches if milliseconds else config.batch,
        "steps": config.steps,
        "rounds": config.rounds,
    }
    found: Mapping[str, Sequence[float]] = worlds.measure(
        "pipeline_torch",
        arguments,
        ranks=config.ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return found


def _one_stage(
    config: PipelineTorchBench, worlds: Worlds, microbatches: int, width: int, batch: int
) -> tuple[Mapping[str, Sequence[float]], int]:
    """Seconds of a step of one stage on one rank, by our executor and by a plain loop, and the
    number of its actions; of layers of `width` on `batch` samples.
    """
    found = worlds.measure(
        "pipeline_executor",
        {
            "microbatches": microbatches,
            "width": width,
            "batch": batch,
            "rounds": 3 * config.rounds,  # short ones, of one rank
        },
        ranks=1,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return found["seconds"], int(found["actions"])


BENCH = Bench(
    "a pipeline's step against torch.distributed.pipelining",
    PipelineTorchBench,
    run,
    {"pipeline_torch": measure, "pipeline_executor": measure_executor},
    ranks=4,
)
