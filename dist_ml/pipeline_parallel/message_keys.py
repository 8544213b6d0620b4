"""Which tensors the ranks of a pipeline send each other, told from schedule and stages alone."""

from collections.abc import Sequence
from typing import NamedTuple

from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.stage_graph import Edge, Stage


class Key(NamedTuple):
    """One tensor on its way: along an edge (backward: against it), of one micro-batch."""

    edge: Edge
    backward: bool
    microbatch: int


def expected(schedule: Schedule, stages: Sequence[Stage], rank: int) -> list[Key]:
    """What `rank` receives from others in a step, in the order in which it is used."""
    keys: list[Key] = []
    for action in schedule.actions[rank]:
        keys += [key for key in used_by(action, stages) if _comes_from(schedule, key) != rank]
    return keys


def sent_ahead(schedule: Schedule, stages: Sequence[Stage], rank: int) -> list[Key]:
    """What others send in a step to forward passes of the next one that `rank` runs only there."""
    own = schedule.actions[rank]
    keys = [
        Key(edge, False, action.microbatch)
        for actions in schedule.actions
        for action in actions
        if action.kind == "F" and action.microbatch >= schedule.num_microbatches
        for edge in stages[action.stage].gives
    ]
    return [
        key
        for key in keys
        if schedule.pipe(key.microbatch)[key.edge.destination] == rank
        and Action(key.edge.destination, "F", key.microbatch) not in own
    ]


def forward_at(stage: int, key: Key) -> Action | None:
    """The forward pass that makes or uses an activation at `stage`; None for a gradient."""
    return None if key.backward else Action(stage, "F", key.microbatch)


def used_by(action: Action, stages: Sequence[Stage]) -> list[Key]:
    """The tensors of other stages that an action uses."""
    stage = stages[action.stage]
    if action.kind == "F":
        return [Key(edge, False, action.microbatch) for edge in stage.takes]
    if action.kind in ("B", "I"):
        return [Key(edge, True, action.microbatch) for edge in stage.gives]
    return []


def _comes_from(schedule: Schedule, key: Key) -> int:
    pipe = schedule.pipe(key.microbatch)
    return pipe[key.edge.destination if key.backward else key.edge.source]
