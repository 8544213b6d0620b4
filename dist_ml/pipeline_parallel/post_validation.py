"""Steps that begin before the one ahead of them is validated: which actions may, and what it saves.

Whether a step's gradient is finite and below a limit is known when the last rank is through with
it. A rank that waits for this ends every step with the last one, and of a zero-bubble schedule's
gain loses what lies in beginning early. Post-validation (Qi, Wan, Huang, Lin, "Zero bubble pipeline
parallelism", ICLR 2024, section 4) updates at once, goes on, and takes both back where what the
ranks agree on meanwhile asks for another update:

    rank 0   step 1          | F F F F F |? validated
    rank 3         step 1          | agreed |  F I ...

Only forward passes run ahead: gradients and sums of the step ahead stay as they are until it is
validated, so that it can be redone from them.
"""

from collections.abc import Sequence
from itertools import takewhile

from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedule import Action, Schedule


def ahead_of_validation(schedule: Schedule) -> tuple[tuple[Action, ...], ...]:
    """By rank, its first actions that may run before the step ahead is validated: forward passes
    that compute no loss, and get what they use from others of the kind.
    """
    last = schedule.num_stages - 1
    found = tuple(
        tuple(takewhile(lambda action: action.kind == "F" and action.stage < last, actions))
        for actions in schedule.actions
    )
    while (fewer := _fed(found)) != found:
        found = fewer
    return found


def _fed(ahead: Sequence[Sequence[Action]]) -> tuple[tuple[Action, ...], ...]:
    """Of each rank, the actions up to one whose input isn't made by one of them."""
    present = {action for actions in ahead for action in actions}

    def fed(action: Action) -> bool:
        return not action.stage or action._replace(stage=action.stage - 1) in present

    return tuple(tuple(takewhile(fed, actions)) for actions in ahead)


def gains_by_post_validation(schedule: Schedule) -> bool:
    """Whether ranks that don't wait for each other between steps take less time for each, where
    actions are of equal length, but for the first stage's, which gives no gradient of its inputs.
    """
    costs = Costs.uniform(schedule.num_stages)
    costs = costs._replace(input_backward=(0.0, *costs.input_backward[1:]))
    planned = dry_run(schedule, costs)
    return planned.span < (1 - 1e-9) * planned.makespan
