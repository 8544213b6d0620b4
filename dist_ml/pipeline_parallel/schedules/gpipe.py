"""GPipe: all forward passes, then all backward passes.

Source: Huang et al., "GPipe: Efficient training of giant neural networks using pipeline
parallelism", NeurIPS 2019, section 2.3.
"""

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request


def gpipe(request: Request) -> Schedule:
    """Stage s on rank s. Bubble (D-1)/(N+D-1); N activations a rank."""
    microbatches = range(request.microbatches)
    orders = [
        [Action(stage, "F", m) for m in microbatches]
        + [Action(stage, "B", m) for m in reversed(microbatches)]
        for stage in range(request.ranks)
    ]
    return one_pipe("gpipe", orders, range(request.ranks), request.microbatches)
