"""What steps of stages that sleep are planned to take, hold and send, from their schedule alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dist_ml.bench.pipeline_part import STEPS, make
from dist_ml.pipeline_parallel.dry_run import Costs, TimedAction, Timeline, dry_run
from dist_ml.pipeline_parallel.post_validation import ahead_of_validation
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


def planned_steps(
    schedule: Schedule, costs: Costs, num_steps: int, waits: Callable[[int], bool]
) -> float:
    """Time units of so many steps one after the other; updates, and the messages by which ranks
    agree, left out. `waits(n)`: step n begins when the one ahead of it is validated, as all do with
    validation before the update, and with validation after it those that are begun again.
    """
    num_ahead = [len(actions) for actions in ahead_of_validation(schedule)]
    free, agreed = [0.0] * schedule.num_ranks, 0.0  # when a rank, and the last one, has ended
    for number in range(num_steps):
        first = [0] * schedule.num_ranks if waits(number) else num_ahead

        def earliest(
            rank: int,
            n: int,
            free: list[float] = free,
            agreed: float = agreed,
            first: list[int] = first,
        ) -> float:
            return free[rank] if n < first[rank] else agreed

        timeline = dry_run(schedule, costs, earliest)
        free = [actions[-1].stop for actions in timeline.ranks]
        agreed = max(free)
    return agreed


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
