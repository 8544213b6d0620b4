"""What a step of stages that sleep is planned to take, hold and send, from its schedule alone."""

from collections.abc import Sequence
from typing import NamedTuple

from dist_ml.bench.pipeline_part import STEPS, make
from dist_ml.pipeline_parallel.dry_run import Costs, TimedAction, Timeline, dry_run
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled


class Plan(NamedTuple):
    """Of one step; where steps run into each other, of one that the pipe is full in."""

    timeline: Timeline
    seconds: float  # until the last stage ends the next one
    activations: tuple[int, ...]  # the most that each rank holds
    messages: int  # of all ranks
    weight_copies: float

    @property
    def busy(self) -> float:
        """Seconds that a rank computes, the mean over the ranks."""
        ranks = self.timeline.ranks
        return sum(timed.stop - timed.start for rank in ranks for timed in rank) / len(ranks)

    @property
    def bubble(self) -> float:
        """The idle share of the ranks' time."""
        return 1 - self.busy / self.seconds


def plan(name: str, ranks: int, microbatches: int, seconds: Sequence[float]) -> Plan:
    """The dry run with the times that the stages sleep."""
    schedule = make(name, ranks, microbatches)
    costs = sleeping_costs(schedule, seconds)
    copies = schedule.weight_copies
    if not schedule.is_asynchronous:
        timeline, proof = dry_run(schedule, costs), prove(schedule)
        held = proof.memory.activations
        return Plan(timeline, timeline.makespan, held, sum(proof.messages), copies)
    several = unrolled(schedule, STEPS)
    timeline, proof = dry_run(several, costs), prove(several)
    last = [timed.stop for timed in timeline.ranks[-1][2 * microbatches - 1 :: 2 * microbatches]]
    taken = (last[-1] - last[0]) / (STEPS - 1)
    full = _second_step(timeline, microbatches)
    return Plan(full, taken, proof.memory.activations, sum(proof.messages) // STEPS, copies)


def sleeping_costs(schedule: Schedule, seconds: Sequence[float]) -> Costs:
    """What its actions take where stages sleep `seconds` of a rank's share of the layers."""
    part = schedule.num_ranks / schedule.num_stages
    costs = Costs.of_parts(schedule.num_stages, [part * value for value in seconds])
    return costs._replace(input_backward=(0.0, *costs.input_backward[1:]))


def _second_step(timeline: Timeline, microbatches: int) -> Timeline:
    """The actions between the last backward passes of the first step and of the second one."""
    ranks = []
    for rank in timeline.ranks:
        ends = [number for number, (action, _, _) in enumerate(rank) if action.kind == "B"]
        start, stop = ends[microbatches - 1] + 1, ends[2 * microbatches - 1] + 1
        ranks.append(
            tuple(
                TimedAction(action._replace(microbatch=action.microbatch - microbatches), *times)
                for action, *times in rank[start:stop]
            )
        )
    return Timeline(tuple(ranks))
