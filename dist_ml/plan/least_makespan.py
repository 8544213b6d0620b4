"""What a pipeline takes at least, without its schedule's order: so that a search needn't dry-run
what can't win.

A rank waits until the first micro-batch has come through the stages before its own, then it has
work for all micro-batches, and after its last backward pass the stages before it have theirs:

    fill + busy + drain                  whole backward passes
    fill + busy without weights + drain  where weights' gradients may come later, and
    fill + busy
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import add

from dist_ml.pipeline_parallel.dry_run import Costs
from dist_ml.pipeline_parallel.schedule import Schedule


def least_makespan(schedule: Schedule, num_microbatches: int, costs: Costs) -> float:
    """At most what `dry_run` finds for `num_microbatches` in a schedule of this kind, whatever the
    number in `schedule`, of which only the places of stages count, how micro-batches are dealt to
    the pipes, and whether backward passes are split. 0 for an asynchronous one. O(pipes x stages).
    """
    if schedule.is_asynchronous:
        return 0.0
    split = any(action.kind == "I" for action in schedule.actions[0])
    ends = costs.input_backward
    whole = tuple(map(add, costs.input_backward, costs.weight_backward))
    ranks = range(schedule.num_ranks)
    busy, weights = [0.0 for _ in ranks], [0.0 for _ in ranks]
    fill, drain = [float("inf") for _ in ranks], [float("inf") for _ in ranks]
    for number, pipe in enumerate(schedule.pipes):
        dealt = schedule.pipe_of.count(number) * num_microbatches / schedule.num_microbatches
        before = _arrivals(costs.forward, pipe, costs.message)
        after = _arrivals(ends if split else whole, pipe, costs.message)
        for stage, rank in enumerate(pipe):
            busy[rank] += dealt * (costs.forward[stage] + whole[stage])
            weights[rank] += dealt * costs.weight_backward[stage]
            fill[rank] = min(fill[rank], before[stage])
            drain[rank] = min(drain[rank], after[stage])
    if not split:
        return max(map(sum, zip(fill, busy, drain, strict=True)))
    return max(fill[r] + max(busy[r], busy[r] - weights[r] + drain[r]) for r in ranks)


def _arrivals(seconds: Sequence[float], pipe: Sequence[int], message: float) -> list[float]:
    """When the first micro-batch comes to each stage, or leaves the first one on its way back."""
    hops = [message if one != other else 0.0 for one, other in pairwise(pipe)]
    return [0.0, *accumulate(map(add, seconds[:-1], hops))]
