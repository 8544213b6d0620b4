"""A step as it ran, in one JSON file of a run's folder: when each rank computed each action."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_ml.errors import DataError, ScheduleError
from dist_ml.pipeline_parallel.dry_run import Costs, TimedAction, Timeline, dry_run
from dist_ml.pipeline_parallel.schedule import Action, Schedule


@dataclass(frozen=True)
class MeasuredStep:
    """A schedule, and when its actions ran, in seconds from the start of the step."""

    schedule: Schedule  # of the actions that ran: micro-batches without samples have none
    timeline: Timeline

    @classmethod
    def of(cls, schedule: Schedule, ranks: Sequence[Sequence[TimedAction]]) -> "MeasuredStep":
        """`ranks[r]` is what rank r of `schedule` ran."""
        timeline = Timeline(tuple(tuple(rank) for rank in ranks))
        actions = tuple(tuple(timed.action for timed in rank) for rank in timeline.ranks)
        return cls(replace(schedule, actions=actions), timeline)

    def planned(self) -> Timeline:
        """The dry run with the mean seconds of each kind of action."""
        return dry_run(self.schedule, self.mean_costs())

    def mean_costs(self) -> Costs:
        """Seconds of each kind of action by stage, the mean over its micro-batches; a whole
        backward pass counts as half input and half weight part.
        """
        num_stages = self.schedule.num_stages
        means = {}
        for kind in ("F", "I", "W"):
            for stage in range(num_stages):
                means[kind, stage] = self._mean(kind, stage)
        return Costs(
            tuple(means["F", stage] for stage in range(num_stages)),
            tuple(means["I", stage] for stage in range(num_stages)),
            tuple(means["W", stage] for stage in range(num_stages)),
        )

    def _mean(self, kind: str, stage: int) -> float:
        taken = [
            (timed.stop - timed.start) / (2 if timed.action.kind != kind else 1)
            for rank in self.timeline.ranks
            for timed in rank
            if timed.action.stage == stage
            and (timed.action.kind == kind or (kind != "F" and timed.action.kind == "B"))
        ]
        return sum(taken) / len(taken) if taken else 0.0


def write(file: Path, step: MeasuredStep) -> None:
    """`DataError` where it can't be written."""
    content = {
        "schedule": step.schedule.name,
        "pipes": step.schedule.pipes,
        "pipe_of": step.schedule.pipe_of,
        "ranks": [
            [[str(action), start, stop] for action, start, stop in rank]
            for rank in step.timeline.ranks
        ],
    }
    try:
        file.write_text(json.dumps(content) + "\n")
    except OSError as error:
        raise DataError(f"{file} can't be written: {error.strerror or error}") from error


def read(file: Path) -> MeasuredStep:
    """`DataError` where the file is missing or holds something else."""
    try:
        content = json.loads(file.read_text())
        ranks = [
            [TimedAction(Action.parse(text), float(a), float(b)) for text, a, b in rank]
            for rank in content["ranks"]
        ]
        pipes = tuple(tuple(int(rank) for rank in pipe) for pipe in content["pipes"])
        pipe_of = tuple(int(pipe) for pipe in content["pipe_of"])
        step = MeasuredStep.of(Schedule(str(content["schedule"]), (), pipes, pipe_of), ranks)
        if not any(ranks) or not all(map(_is_time, (each for rank in ranks for each in rank))):
            raise ValueError("its actions have no times")
        step.planned()  # who holds which stage is there, and nobody waits for ever
        return step
    except FileNotFoundError:
        raise DataError(
            f"{file} does not exist: only runs with mesh.pipeline above 1 that came to their end "
            "leave it, and not with pipeline=pipedream_2bw"
        ) from None
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError,
            RecursionError, ScheduleError) as error:  # fmt: skip
        raise DataError(f"{file} holds no measured step ({error}); was it changed?") from error


def _is_time(timed: TimedAction) -> bool:
    return math.isfinite(timed.start) and math.isfinite(timed.stop) and timed.start <= timed.stop
