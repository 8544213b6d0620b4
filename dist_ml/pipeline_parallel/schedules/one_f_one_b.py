"""1F1B: each stage alternates forward and backward passes once the pipe is full.

Source: Fan et al., "DAPPLE: A pipelined data parallel approach for training large models", PPoPP
2021, section 3.2; Narayanan et al., "PipeDream", SOSP 2019, section 3.2.
"""

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request


def one_f_one_b(request: Request) -> Schedule:
    """Stage s on rank s. Bubble (D-1)/(N+D-1); at most D - s activations on rank s."""
    orders = [order(stage, request.ranks, request.microbatches) for stage in range(request.ranks)]
    return one_pipe("one_f_one_b", orders, range(request.ranks), request.microbatches)


def order(stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """Enough forwards to fill the stages after this one, then pairs, then the backwards left."""
    warmup = min(num_stages - stage - 1, num_microbatches)
    actions = [Action(stage, "F", m) for m in range(warmup)]
    for m in range(warmup, num_microbatches):
        actions += [Action(stage, "F", m), Action(stage, "B", m - warmup)]
    rest = range(num_microbatches - warmup, num_microbatches)
    return actions + [Action(stage, "B", m) for m in rest]
