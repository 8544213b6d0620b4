"""Run a schedule without running it: when each action starts and ends, what is alive meanwhile.

The graph has an edge from each action to the next one of its rank, and from what makes an input to
what uses it:

    F of stage s  ->  F of stage s + 1           activations
    F             ->  B or I of the same stage   what the forward pass kept
    B or I of s   ->  B or I of stage s - 1      gradients of activations
    I             ->  W of the same stage

Times are those of the longest path; a graph with a cycle has none, and its actions can't all run.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.schedule import Action, Kind, Schedule


class Costs(NamedTuple):
    """Time units of one micro-batch's actions on each stage, and of a message between two ranks.

    The backward pass B is I and W together; a scalar in `uniform` stands for all stages.
    """

    forward: tuple[float, ...]
    input_backward: tuple[float, ...]
    weight_backward: tuple[float, ...]
    message: float = 0.0

    @classmethod
    def uniform(
        cls, num_stages: int, forward: float = 1.0, backward: float = 2.0, message: float = 0.0
    ) -> "Costs":
        """The same on every stage; I and W are half of `backward` each."""
        half = (backward / 2,) * num_stages
        return cls((forward,) * num_stages, half, half, message)

    @classmethod
    def of_parts(cls, num_stages: int, parts: Sequence[float], message: float = 0.0) -> "Costs":
        """The same on every stage: `parts` are forward, input and weight part, or forward and the
        whole backward pass.
        """
        if len(parts) == 2:
            return cls.uniform(num_stages, parts[0], parts[1], message)
        forward, of_input, of_weight = ((part,) * num_stages for part in parts)
        return cls(forward, of_input, of_weight, message)

    def of(self, action: Action) -> float:
        """Time units of one action."""
        stage = action.stage
        if action.kind == "F":
            return self.forward[stage]
        whole = {"I": (1, 0), "W": (0, 1), "B": (1, 1)}[action.kind]
        return whole[0] * self.input_backward[stage] + whole[1] * self.weight_backward[stage]


class TimedAction(NamedTuple):
    """When one action runs."""

    action: Action
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """What every rank does when, in the order of its actions."""

    ranks: tuple[tuple[TimedAction, ...], ...]

    @property
    def makespan(self) -> float:
        """From the start of the step's first action to the end of its last."""
        stop = max((actions[-1].stop for actions in self.ranks if actions), default=0.0)
        return stop - min((actions[0].start for actions in self.ranks if actions), default=0.0)

    @property
    def span(self) -> float:
        """The longest time that a rank takes from its first action to its last: what a step costs
        where ranks go on to the next step without a barrier.
        """
        return max(
            (actions[-1].stop - actions[0].start for actions in self.ranks if actions), default=0.0
        )

    @property
    def bubble(self) -> float:
        """The idle share of the ranks' time up to the common end."""
        busy = sum(timed.stop - timed.start for rank in self.ranks for timed in rank)
        total = self.makespan * len(self.ranks)
        return 1 - busy / total if total else 0.0


def dry_run(
    schedule: Schedule, costs: Costs, earliest: Callable[[int, int], float] = lambda _rank, _n: 0.0
) -> Timeline:
    """When everything runs; `ScheduleError` names the actions that wait for each other. No rank
    starts its n-th action before `earliest(rank, n)`.
    """
    waits_for = dependencies(schedule)
    finished: dict[Action, float] = {}
    ranks: list[list[TimedAction]] = [[] for _ in schedule.actions]
    for rank, action in topological_order(schedule, waits_for):
        done = ranks[rank]
        start = max(earliest(rank, len(done)), done[-1].stop if done else 0.0)
        for earlier in waits_for[action]:
            crosses = schedule.rank_of(earlier) != rank
            start = max(start, finished[earlier] + (costs.message if crosses else 0.0))
        finished[action] = start + costs.of(action)
        done.append(TimedAction(action, start, finished[action]))
    return Timeline(tuple(tuple(rank) for rank in ranks))


def dependencies(schedule: Schedule) -> dict[Action, tuple[Action, ...]]:
    """What each action uses the result of, besides the order of its rank."""
    present = {action for actions in schedule.actions for action in actions}
    last = schedule.num_stages - 1

    def backward(stage: int, microbatch: int) -> list[Action]:
        kinds: tuple[Kind, ...] = ("B", "I")
        found = [Action(stage, kind, microbatch) for kind in kinds]
        return [action for action in found if action in present]

    result: dict[Action, tuple[Action, ...]] = {}
    for action in present:
        stage, kind, microbatch = action
        if kind == "F":
            uses = [Action(stage - 1, "F", microbatch)] if stage else []
        elif kind == "W":
            uses = [Action(stage, "I", microbatch)]
        else:
            uses = [Action(stage, "F", microbatch)]
            uses += backward(stage + 1, microbatch) if stage < last else []
        result[action] = tuple(used for used in uses if used in present)
    return result


def topological_order(
    schedule: Schedule, waits_for: Mapping[Action, Sequence[Action]]
) -> list[tuple[int, Action]]:
    """(rank, action) in an order in which everything can run; `ScheduleError` where there is
    none.
    """
    place = [0] * len(schedule.actions)
    done: set[Action] = set()
    order: list[tuple[int, Action]] = []
    ready = deque(range(len(schedule.actions)))
    blocked: dict[Action, list[int]] = {}
    while ready:
        rank = ready.popleft()
        actions = schedule.actions[rank]
        while place[rank] < len(actions):
            action = actions[place[rank]]
            missing = next((used for used in waits_for[action] if used not in done), None)
            if missing is not None:
                blocked.setdefault(missing, []).append(rank)
                break
            done.add(action)
            order.append((rank, action))
            place[rank] += 1
            ready.extend(blocked.pop(action, ()))
    stuck = [
        f"rank {rank} at {actions[at]}"
        for rank, (actions, at) in enumerate(zip(schedule.actions, place, strict=True))
        if at < len(actions)
    ]
    if stuck:
        raise ScheduleError(
            f"schedule {schedule.name} dead-locks: {', '.join(stuck)} wait for each other; move "
            "the "
            "awaited action before the one that waits on its rank"
        )
    return order
