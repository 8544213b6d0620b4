"""All schedules by name. A new one is a module with a pure function, and an entry here."""

from collections.abc import Callable
from typing import NamedTuple

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.schedules.chimera import chimera
from dist_ml.pipeline_parallel.schedules.csv_file import from_file
from dist_ml.pipeline_parallel.schedules.dualpipe_v import dualpipe_v
from dist_ml.pipeline_parallel.schedules.gpipe import gpipe
from dist_ml.pipeline_parallel.schedules.interleaved import interleaved
from dist_ml.pipeline_parallel.schedules.one_f_one_b import one_f_one_b
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import pipedream_2bw, unrolled
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.schedules.zb_v import zb_v
from dist_ml.pipeline_parallel.schedules.zero_bubble import zb_h1, zb_h2


class ScheduleMember(NamedTuple):
    """How a schedule is made, the keys of `pipeline` that it reads beside those of all, how many
    stages a rank has, and whether its steps run into each other, which makes it another algorithm.
    """

    make: Callable[[Request], Schedule]
    reads: tuple[str, ...] = ()
    stages_a_rank: Callable[[Request], int] = lambda _request: 1
    is_asynchronous: bool = False


SCHEDULES: dict[str, ScheduleMember] = {
    "gpipe": ScheduleMember(gpipe),
    "one_f_one_b": ScheduleMember(one_f_one_b),
    "interleaved": ScheduleMember(interleaved, ("chunks",), lambda request: request.chunks),
    "chimera": ScheduleMember(chimera, ("pipes", "concatenation")),
    "zb_h1": ScheduleMember(zb_h1),
    "zb_h2": ScheduleMember(zb_h2),
    "zb_v": ScheduleMember(zb_v, (), lambda _: 2),
    "dualpipe_v": ScheduleMember(dualpipe_v, (), lambda _: 2),
    "pipedream_2bw": ScheduleMember(pipedream_2bw, is_asynchronous=True),
    "file": ScheduleMember(from_file, ("file",)),
}

_MOST_PASSES = 1 << 17  # proved in seconds
_STEPS_PROVED = 3  # of an asynchronous schedule: one to fill the pipe, one full, one to drain it


def make(name: str, request: Request) -> Schedule:
    """The schedule called `name`, proved; `ScheduleError` says what it can't take and what it
    can.
    """
    schedule = unproved(name, request)
    prove(unrolled(schedule, _STEPS_PROVED) if schedule.is_asynchronous else schedule)
    return schedule


def unproved(name: str, request: Request) -> Schedule:
    """For plans of many, of which none is run."""
    if name not in SCHEDULES:
        raise ScheduleError(f"schedule {name} is none of {', '.join(SCHEDULES)}")
    if request.ranks < 1 or request.microbatches < 1:
        raise ScheduleError(
            f"a schedule needs at least 1 rank and 1 micro-batch, not {request.ranks} and "
            f"{request.microbatches}"
        )
    member = SCHEDULES[name]
    passes = request.ranks * member.stages_a_rank(request) * request.microbatches
    if passes > _MOST_PASSES:
        raise ScheduleError(
            f"schedule {name} would have {passes:,} forward passes, {request.microbatches:,} "
            f"micro-batches through all stages; a step can have {_MOST_PASSES:,}: use fewer "
            "micro-batches"
        )
    return member.make(request)
