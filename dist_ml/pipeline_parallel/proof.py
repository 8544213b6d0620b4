"""Prove that a schedule is right before it runs: complete, free of dead-locks, and how much it
holds.

What is proved, in milliseconds and without MPI, of every schedule, ours or read from a file:

1. each micro-batch passes each stage forward once and backward once (B, or I and W), on the rank
   that holds the stage;
2. no actions wait for each other in a circle;
3. that stays so when no message is buffered, that is, when a send ends only once its receive has
   been posted (a rendezvous). A rank posts the receives of an action before it waits for anything,
   and may run on while `sends_in_flight` of its sends are not received yet: the least number that
   does is stated, 0 where even blocking sends do.
"""

from collections import Counter
from typing import NamedTuple

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.dry_run import dependencies, topological_order
from dist_ml.pipeline_parallel.peaks import Memory, memory
from dist_ml.pipeline_parallel.schedule import Action, Schedule


class Proof(NamedTuple):
    """What holds of a schedule, one number a rank unless said otherwise."""

    memory: Memory
    messages: tuple[int, ...]  # sent by each rank in a step
    sends_in_flight: int  # of any rank, without buffers


def prove(schedule: Schedule) -> Proof:
    """`ScheduleError` with the action that breaks a rule; else what the schedule needs."""
    check_complete(schedule)
    waits_for = dependencies(schedule)
    topological_order(schedule, waits_for)
    sends = _sends(schedule, waits_for)
    messages = tuple(sum(len(sends[action]) for action in order) for order in schedule.actions)
    return Proof(memory(schedule), messages, _least_in_flight(schedule, waits_for, sends))


def check_complete(schedule: Schedule) -> None:
    """Each action once, on its stage's rank, and none that the header doesn't know."""
    count: Counter[Action] = Counter()
    for rank, order in enumerate(schedule.actions):
        for action in order:
            _check_known(schedule, rank, action)
            count[action] += 1
            if count[action] > 1:
                raise ScheduleError(
                    f"schedule {schedule.name}: {action} is there twice, the second time on rank "
                    f"{rank}; each action must run once"
                )
    for stage in range(schedule.num_stages):
        for m in range(schedule.num_microbatches):
            _check_passes(schedule, count, stage, m)


def _check_known(schedule: Schedule, rank: int, action: Action) -> None:
    if action.stage >= schedule.num_stages or action.microbatch >= schedule.num_microbatches:
        raise ScheduleError(
            f"schedule {schedule.name}: {action} on rank {rank} is beyond its "
            f"{schedule.num_stages} stages and {schedule.num_microbatches} micro-batches"
        )
    if schedule.rank_of(action) != rank:
        raise ScheduleError(
            f"schedule {schedule.name}: {action} stands on rank {rank}, but the stage's weights "
            f"for this micro-batch are on rank {schedule.rank_of(action)}"
        )


def _check_passes(schedule: Schedule, count: Counter[Action], stage: int, m: int) -> None:
    found = "".join(kind for kind in "FBIW" if count[Action(stage, kind, m)])  # type: ignore[arg-type]
    if found in ("FB", "FIW"):
        return
    if "F" not in found:
        missing = Action(stage, "F", m)
    elif "B" in found:
        twice = Action(stage, "I" if "I" in found else "W", m)
        raise ScheduleError(
            f"schedule {schedule.name}: {twice} repeats a part of {stage}B{m}; use B, or I and W"
        )
    else:
        missing = Action(stage, "W" if "I" in found else "I" if "W" in found else "B", m)
    raise ScheduleError(
        f"schedule {schedule.name}: {missing} is missing on rank {schedule.rank_of(missing)}; each "
        "micro-batch must pass each stage forward once and backward once"
    )


def _sends(
    schedule: Schedule, waits_for: dict[Action, tuple[Action, ...]]
) -> dict[Action, list[Action]]:
    """The actions on other ranks that use each action's result."""
    sends: dict[Action, list[Action]] = {action: [] for action in waits_for}
    for action, uses in waits_for.items():
        for used in uses:
            if schedule.rank_of(used) != schedule.rank_of(action):
                sends[used].append(action)
    return sends


def _least_in_flight(
    schedule: Schedule,
    waits_for: dict[Action, tuple[Action, ...]],
    sends: dict[Action, list[Action]],
) -> int:
    low, high = 0, 1
    while not _runs_without_buffers(schedule, waits_for, sends, high):  # a few, as a rule
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _runs_without_buffers(schedule, waits_for, sends, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _runs_without_buffers(
    schedule: Schedule,
    waits_for: dict[Action, tuple[Action, ...]],
    sends: dict[Action, list[Action]],
    in_flight: int,
) -> bool:
    """Do all ranks come to their end when each may have `in_flight` sends without a receive?"""
    place = [0] * schedule.num_ranks
    done: set[Action] = set()
    unreceived: list[list[Action]] = [[] for _ in schedule.actions]
    posted: set[Action] = {order[0] for order in schedule.actions if order}
    progress = True
    while progress:
        progress = False
        for rank, order in enumerate(schedule.actions):
            while place[rank] < len(order):
                action = order[place[rank]]
                unreceived[rank] = [user for user in unreceived[rank] if user not in posted]
                if len(unreceived[rank]) > in_flight:
                    break
                if any(used not in done for used in waits_for[action]):
                    break
                done.add(action)
                unreceived[rank] += sends[action]
                place[rank] += 1
                if place[rank] < len(order):
                    posted.add(order[place[rank]])
                progress = True
    return all(at == len(order) for at, order in zip(place, schedule.actions, strict=True))
