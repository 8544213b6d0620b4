"""`dist-ml bench pipeline_validation`: what zero-bubble schedules keep of their gain over 1F1B with
clipping and `nonfinite=skip`.

Ranks agree on each step's norm before its update, or after it (`pipeline.validate`), while the next
step has begun. Consecutive steps of stages that sleep known times, in turn; planned: dry runs of as
many steps with these times. Clipped: no step, the last of each three, or every one.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import to_arguments
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.pipeline import ONE_F_ONE_B
from dist_ml.bench.pipeline_part import make
from dist_ml.bench.pipeline_plan import planned_steps, sleeping_costs
from dist_ml.bench.pipeline_validation_part import measure
from dist_ml.bench.worlds import Worlds
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import ratio
from dist_ml.pipeline_parallel.dry_run import dry_run
from dist_ml.pipeline_parallel.post_validation import gains_by_post_validation

NEVER, THIRD, ALWAYS = 0, 3, 1  # one in so many steps is clipped
WORDS = {NEVER: "none", THIRD: "each third", ALWAYS: "each"}


@dataclass(frozen=True)
class PipelineValidationBench:
    """What to run."""

    train: TrainConfig  # optimizer, clip_norm and the like
    mpi: str
    ranks: int  # of the pipeline
    microbatches: int
    schedules: tuple[str, ...]  # against one_f_one_b
    milliseconds: tuple[float, ...]  # of a stage: forward, input part, weight part
    steps: int  # one after the other
    rounds: int  # of alternation

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigError(f"steps={self.steps} must be at least 2: a next one begins early")

    @property
    def seconds(self) -> list[float]:
        """Of a stage, likewise."""
        return [1e-3 * value for value in self.milliseconds]


def run(config: PipelineValidationBench, worlds: Worlds) -> Result:
    candidates = list(candidates_of(config))
    found = worlds.measure(
        "pipeline_validation",
        {
            "train": to_arguments(config.train),
            "candidates": candidates,
            "microbatches": config.microbatches,
            "seconds": config.seconds,
            "steps": config.steps,
            "rounds": config.rounds,
        },
        ranks=config.ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    seconds = dict(zip(candidates, found, strict=True))
    records = [record(config, candidate, seconds) for candidate in candidates]
    return Result("pipeline_validation", records, checks_of(records))


Candidate = tuple[str, str, int]  # schedule, validate, one in so many steps is clipped


def candidates_of(config: PipelineValidationBench) -> Iterator[Candidate]:
    """1F1B as it is; the others both ways, and with clipped steps where these are redone."""
    yield ONE_F_ONE_B, "before", NEVER
    for name in config.schedules:
        yield name, "before", NEVER
        for clipped in (NEVER, THIRD, ALWAYS):
            yield name, "after", clipped


def record(
    config: PipelineValidationBench,
    candidate: Candidate,
    seconds: dict[Candidate, Sequence[float]],
) -> dict[str, Any]:
    """One row. A gain of 1 is that of ranks that never wait for each other between steps."""
    name, validate, clipped = candidate
    baseline = (ONE_F_ONE_B, "before", NEVER)
    planned, least = planned_step(config, candidate), planned_span(config, name)
    whole = planned_step(config, baseline) - least
    measured = statistics.median(seconds[candidate])
    saved = statistics.median(seconds[baseline]) - measured
    return {
        "schedule": name,
        "validate": validate,
        "clipped": WORDS[clipped],
        "planned_ms": 1e3 * planned,
        "measured_ms": 1e3 * measured,
        "over_one_f_one_b": ratio(seconds[baseline], seconds[candidate]).median,
        "planned_gain": (planned_step(config, baseline) - planned) / whole if whole else 1.0,
        "measured_gain": saved / whole if whole else 1.0,
        "over_before": ratio(seconds[candidate], seconds[name, "before", NEVER]).median,
        "gains_early": gains_by_post_validation(make(name, config.ranks, config.microbatches)),
    }


def planned_step(config: PipelineValidationBench, candidate: Candidate) -> float:
    """Seconds of each of `steps` steps. A step that is clipped, and the one after, which is not
    taken early, are awaited by the next.
    """
    name, validate, clipped = candidate
    schedule = make(name, config.ranks, config.microbatches)

    def is_clipped(number: int) -> bool:
        return number >= 0 and clipped > 0 and (number + 1) % clipped == 0

    def waits(number: int) -> bool:
        return validate == "before" or is_clipped(number - 1) or is_clipped(number - 2)

    costs = sleeping_costs(schedule, config.seconds)
    return planned_steps(schedule, costs, config.steps, waits) / config.steps


def planned_span(config: PipelineValidationBench, name: str) -> float:
    """Seconds of a step among many where no rank waits for another one's end."""
    schedule = make(name, config.ranks, config.microbatches)
    return dry_run(schedule, sleeping_costs(schedule, config.seconds)).span


def checks_of(records: Sequence[Record]) -> list[Check]:
    """Of each row validated after its update: not slower than before it, and as planned; a plan
    doesn't know of the action in which a rank learns that a step begins again.
    """
    checks = []
    for row in records:
        if row["validate"] == "before":
            continue
        which = f"{row['schedule']}, clipped: {row['clipped']}"
        slower = f"step over one validated before its update, {which}"
        checks.append(Check(slower, row["over_before"], 1.02, "lower"))
        if row["clipped"] == WORDS[THIRD]:
            continue
        late = row["measured_ms"] / row["planned_ms"]
        checks.append(Check(f"step over its plan, {which}", late, 1.05, "lower"))
        if row["gains_early"] and row["clipped"] == WORDS[NEVER]:
            kept = row["measured_gain"] / row["planned_gain"]
            part = f"part of the planned gain over 1F1B, {which}"
            checks.append(Check(part, kept, 0.9, "higher"))
    return checks


BENCH = Bench(
    "zero-bubble steps with clipping, validated before and after their update",
    PipelineValidationBench,
    run,
    {"pipeline_validation": measure},
    ranks=4,
)
