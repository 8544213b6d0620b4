"""What a plan is predicted to take, by the cost model of `measure`."""

from dist_ml.gemm.plan import Plan
from dist_ml.measure.cost_model import CostModel


def seconds(plan: Plan, model: CostModel) -> float:
    """Predicted seconds of the slowest rank, all joined by `model.network`."""
    return max(_rank_seconds(plan, rank, model) for rank in plan.representative_ranks())


def _rank_seconds(plan: Plan, rank: int, model: CostModel) -> float:
    """The slower of computing and gathering with one panel of both exposed, then the reduction of
    C.
    """
    pk = plan.grid.pk
    compute = model.compute_seconds(plan.flops(rank))
    moved = plan.moved(rank)
    reduced = plan.layout_c.num_words(rank) * (pk - 1)
    reductions = plan.reduce_parts * (pk - 1) * plan.tiles.tm * plan.tiles.tn
    reducing = model.seconds(reductions, reduced, plan.shape.sum_bytes)
    gathering = model.seconds(
        max(0, moved.messages - reductions), moved.received - reduced, plan.shape.word_bytes
    )
    return compute + gathering - min(compute, gathering) * _hidden(plan, rank) + reducing


def _hidden(plan: Plan, rank: int) -> float:
    """The share of the shorter of computing and gathering that goes on beside the longer: all but
    the first panel's.
    """
    panels, depth = plan.panels(rank), plan.block(rank)[2].size
    if plan.buffers == 1 or len(panels) <= 1 or not depth:
        return 0.0
    return 1 - panels[0].size / depth
