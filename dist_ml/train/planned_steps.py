"""What the schedule of a pipeline would have made of a step, beside what it was: the dry run with
the mean time of each kind of the step's actions, from when the first of them began.
"""

from collections.abc import Sequence
from typing import TypeAlias

from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.timeline_file import MeasuredStep
from dist_ml.trace.slices import COMPUTE, PLANNED, Slice, in_lanes
from dist_ml.train.pipeline import Pipeline

# When this rank ran each action of a step, in seconds of a clock that all ranks share.
Actions: TypeAlias = Sequence[TimedAction]


def planned(pipeline: Pipeline, steps: Sequence[Actions]) -> list[Slice]:
    """This rank's part of the plans of `steps`; none under an asynchronous schedule, whose steps
    run into each other. Collective over the pipeline.
    """
    if pipeline.schedule.is_asynchronous:
        return []
    slices = []
    for ranks in zip(*pipeline.comm.allgather_objects(steps), strict=True):
        if any(ranks):
            first = min(actions[0].start for actions in ranks if actions)
            plan = MeasuredStep.of(pipeline.schedule, ranks).planned()
            own = plan.ranks[pipeline.comm.rank]
            slices += [_named(PLANNED, timed, first) for timed in own]
    return in_lanes(slices)  # a plan may end after the next step has begun


def measured(steps: Sequence[Actions]) -> list[Slice]:
    """What this rank ran."""
    return [_named(COMPUTE, timed) for actions in steps for timed in actions]


def _named(track: str, timed: TimedAction, after: float = 0.0) -> Slice:
    """As torch names them: `PP:2F0`."""
    start, stop = (round(1e9 * (after + moment)) for moment in (timed.start, timed.stop))
    return Slice(track, f"PP:{timed.action}", start, stop)
