"""What a schedule makes a rank hold at once: activations, and messages that are not used yet."""

from collections.abc import Sequence
from typing import NamedTuple

from dist_ml.pipeline_parallel.dry_run import dependencies, topological_order
from dist_ml.pipeline_parallel.schedule import Action, Schedule


class Memory(NamedTuple):
    """The most that a rank holds at once, in micro-batches of one stage."""

    activations: tuple[int, ...]  # forward passes whose backward (B, or I and W) hasn't ended
    messages: tuple[int, ...]  # received or on their way to the rank, and not used yet


def memory(schedule: Schedule) -> Memory:
    """Peaks a rank over the order in which `topological_order` runs everything."""
    return Memory(peak_activations(schedule), _peak_messages(schedule))


def peak_activations(schedule: Schedule) -> tuple[int, ...]:
    """`Memory.activations` alone. O(actions)."""
    split = {
        (action.stage, action.microbatch)
        for actions in schedule.actions
        for action in actions
        if action.kind == "W"
    }
    return tuple(_peak_activations(actions, split) for actions in schedule.actions)


def _peak_activations(actions: Sequence[Action], split: set[tuple[int, int]]) -> int:
    alive = peak = 0
    for action in actions:
        if action.kind == "F":
            alive += 1
        elif action.kind == ("W" if (action.stage, action.microbatch) in split else "B"):
            alive -= 1
        peak = max(peak, alive)
    return peak


def _peak_messages(schedule: Schedule) -> tuple[int, ...]:
    waits_for = dependencies(schedule)
    users: dict[Action, list[Action]] = {}
    for action, uses in waits_for.items():
        for used in uses:
            users.setdefault(used, []).append(action)
    waiting = [0] * len(schedule.actions)
    peak = list(waiting)
    for rank, action in topological_order(schedule, waits_for):
        waiting[rank] -= sum(schedule.rank_of(used) != rank for used in waits_for[action])
        for user in users.get(action, ()):
            to = schedule.rank_of(user)
            if to != rank:
                waiting[to] += 1
                peak[to] = max(peak[to], waiting[to])
    return tuple(peak)
