"""PipeDream-2BW: 1F1B without a flush, on two versions of the weights.

    step t on stage s    F of batch t and, the last D - s - 1 of them, of batch t + 1
                         B of batch t

Weights W(t+1) = W(t) - lr * gradient at W(t-1): the gradient is one step old, on all stages alike.
Batch t passes forward and backward through W(t-1); the forward passes of batch t + 1 that step t
runs already pass through W(t), which step t - 1 made. With N >= D no third version is in use.

Source: Narayanan et al., "Memory-efficient pipeline-parallel DNN training", ICML 2021, section 3.1.
"""

from dataclasses import replace

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request, require_at_least


def pipedream_2bw(request: Request) -> Schedule:
    """Stage s on rank s; no bubble once the pipe is full; two copies of the weights.

    `actions` are those of one step once the pipe is full: micro-batch N + m is m of the next step.
    `unrolled` gives the whole of several steps.
    """
    ranks, microbatches = request.ranks, request.microbatches
    require_at_least("pipedream_2bw", request, ranks)
    orders = [_step(stage, ranks, microbatches) for stage in range(ranks)]
    return one_pipe("pipedream_2bw", orders, range(ranks), microbatches, weight_versions=2)


def _step(stage: int, ranks: int, microbatches: int) -> list[Action]:
    ahead = ranks - stage - 1
    actions = []
    for m in range(microbatches):
        actions += [Action(stage, "F", m + ahead), Action(stage, "B", m)]
    return actions


def from_empty(schedule: Schedule) -> Schedule:
    """The step that finds the pipe empty: it begins with the forward passes that the step before
    would have run, D - s - 1 on stage s.
    """
    orders = []
    for stage, step in enumerate(schedule.actions):
        ahead = min(action.microbatch for action in step if action.kind == "F")
        orders.append((*(Action(stage, "F", m) for m in range(ahead)), *step))
    return replace(schedule, actions=tuple(orders))


def unrolled(schedule: Schedule, num_steps: int) -> Schedule:
    """`num_steps` steps of an asynchronous schedule from an empty pipe to an empty pipe.

    Step t's micro-batch m is number t N + m.
    """
    n = schedule.num_microbatches
    orders = []
    for first, full in zip(from_empty(schedule).actions, schedule.actions, strict=True):
        order = [
            action._replace(microbatch=number * n + action.microbatch)
            for number in range(num_steps)
            for action in (full if number else first)
        ]
        orders.append([action for action in order if action.microbatch < num_steps * n])
    return one_pipe(schedule.name, orders, schedule.pipes[0], num_steps * n, weight_versions=2)
