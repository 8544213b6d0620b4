"""The ranks' part of `dist-ml bench pipeline`: steps of stages that sleep, under one schedule after
the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dist_ml.bench.sleeping_model import WIDTH, OneSample, SleepingModel
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ScheduleError
from dist_ml.measure.compare import alternate
from dist_ml.measure.timer import Phases
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.schedules import family
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import from_empty
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stage_graph import Shape, Stage, cut_into_stages, output_shapes
from dist_ml.pipeline_parallel.stage_runner import StageRunner

Seconds = tuple[float, float, float]  # of one stage: forward, input part, weight part
# Those that run into each other: one fills the pipe, one finds it full, one empties it.
STEPS = 3


class SleepingStep:
    """One rank's steps of a schedule whose stages sleep."""

    num_steps = 1  # of a run

    def __init__(self, comm: Communicator, schedule: Schedule, seconds: Seconds) -> None:
        self._comm, self._num_microbatches = comm, schedule.num_microbatches
        if schedule.is_asynchronous:
            schedule = from_empty(schedule)
        _, stages, shapes = sleeping_stages(comm.rank, schedule, seconds)
        messages = StageMessages(comm, schedule, stages, shapes, torch.float32)
        actions = schedule.actions[comm.rank]
        self.runner = StageRunner(stages, actions, messages, OneSample(), Phases())
        self._executor = Executor(actions, self.runner.methods)
        self._timed_actions: list[TimedAction] = []

    def run(self) -> float:
        """Seconds from the first action of any rank to the last one's end. Collective."""
        self._comm.barrier()
        self.runner.begin([1] * self._num_microbatches)
        self._executor.run()
        self.runner.end()
        # of one clock: all ranks are on one machine
        timed_actions = self._timed_actions = self.runner.timed_actions
        bounds = np.array([-timed_actions[0].start, timed_actions[-1].stop])
        self._comm.allreduce(bounds, "max")
        return float(bounds[0] + bounds[1])

    def timed_actions(self) -> list[list[tuple[str, float, float]]]:
        """Of the last step, by rank: action, start, stop in seconds of one clock. Collective."""
        return self._comm.allgather_objects(
            [(str(action), start, stop) for action, start, stop in self._timed_actions]
        )


class SleepingStream(SleepingStep):
    """Steps that run into each other, from an empty pipe to an empty one. Actions that are told are
    the second step's.
    """

    num_steps = STEPS

    def run(self) -> float:
        """Seconds from one step's end to the next one's, on the last stage. Collective."""
        self._comm.barrier()
        ends = []
        for number in range(STEPS):
            batches = 1 if number + 1 == STEPS else 2  # its own, and the following one
            self.runner.begin([1] * (batches * self._num_microbatches))
            self._executor.run()
            self.runner.end()
            ends.append(self.runner.timed_actions[-1].stop)
            if number == 1:
                self._timed_actions = self.runner.timed_actions
        found = np.array([(ends[-1] - ends[0]) / (STEPS - 1)])
        self._comm.broadcast(found, self._comm.size - 1)
        return float(found[0])


def sleeping_stages(
    rank: int, schedule: Schedule, seconds: Seconds
) -> tuple[SleepingModel, tuple[Stage, ...], dict[str, Shape]]:
    """A model of a block a stage, with weights for those of `rank`, its stages, and what passes
    between them. A stage of a schedule with v stages a rank sleeps a v-th of `seconds`, so that all
    schedules do the same work.
    """
    part = schedule.num_ranks / schedule.num_stages
    shorter = (seconds[0] * part, seconds[1] * part, seconds[2] * part)
    with torch.device("meta"):
        model = SleepingModel(schedule.num_stages, shorter)
    stages = cut_into_stages(model, [Range(s, s + 1) for s in range(schedule.num_stages)])
    shapes = output_shapes(model, torch.zeros(1, WIDTH))
    for stage in schedule.stages_of(rank):
        model.materialize(stages[stage].blocks)
    return model, stages, shapes


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """By schedule: seconds of a step in each round, the most activations that each rank held, the
    messages that all ranks sent in a step, and when the last step's actions ran.
    """
    seconds: Seconds = tuple(arguments["seconds"])
    steps = {}
    for name in arguments["schedules"]:
        schedule = make(name, comm.size, arguments["microbatches"])
        kind = SleepingStream if schedule.is_asynchronous else SleepingStep
        steps[name] = kind(comm, schedule, seconds)
    messages: dict[str, int] = {}
    for name, step in steps.items():
        before = comm.traffic.snapshot()
        step.run()
        sent = sum(
            tally.messages
            for (_, collective), tally in comm.traffic.since(before).items()
            if collective == "send"
        )
        messages[name] = sum(comm.allgather_objects(sent)) // step.num_steps
    found = alternate({name: step.run for name, step in steps.items()}, arguments["rounds"])
    kept = {name: comm.allgather_objects(step.runner.peak_kept) for name, step in steps.items()}
    timed = {name: step.timed_actions() for name, step in steps.items()}
    return {"seconds": found, "activations": kept, "messages": messages, "timed_actions": timed}


def make(name: str, ranks: int, microbatches: int) -> Schedule:
    """The schedule called `name`; `chimera@F` has 2F pipes."""
    kind, _, pairs = name.partition("@")
    request = Request(ranks, microbatches, pipes=2 * int(pairs or 1))
    return family.make(kind, request)


def names_for(schedules: Sequence[str], ranks: int, microbatches: int) -> list[str]:
    """Those of `schedules` that take so many ranks and micro-batches."""
    taken = []
    for name in schedules:
        try:
            make(name, ranks, microbatches)
        except ScheduleError:
            continue
        taken.append(name)
    return taken
