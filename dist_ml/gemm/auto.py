"""`auto`: the best plan of all algorithms that can do what is asked."""

from collections.abc import Iterable

from dist_ml.gemm import prediction
from dist_ml.gemm.grids import at_work
from dist_ml.gemm.plan import Plan
from dist_ml.measure.cost_model import CostModel


def best_plan(plans: Iterable[Plan], model: CostModel | None = None) -> Plan:
    """By predicted seconds on `model`'s machine. Without one, by the words of the most loaded rank,
    among plans that leave no more ranks idle than a search may. The first of equals.
    """
    found = list(plans)
    if model is not None:
        return min(found, key=lambda plan: prediction.seconds(plan, model))
    busy = min(at_work(found[0].shape), max(plan.grid.size for plan in found))
    return min((plan for plan in found if plan.grid.size >= busy), key=lambda plan: plan.words)
