"""All sparse allreduces by name, and the one that the cost model finds fastest."""

import logging
from collections.abc import Callable

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.allgather import AllgatherSum, DenseSum
from dist_ml.comm.sparse.exchange import Settings, SparseAllreduce
from dist_ml.comm.sparse.gtopk import GlobalTopk
from dist_ml.comm.sparse.oktopk import OkTopk
from dist_ml.comm.sparse.plan import PLANS, Plan, Problem, entry_bytes
from dist_ml.comm.sparse.recursive_doubling import RecursiveDoubling
from dist_ml.comm.sparse.spardl import Spardl
from dist_ml.comm.sparse.split import DenseSplitAllgather, SplitAllgather
from dist_ml.errors import ConfigError
from dist_ml.measure.cost_model import CostModel

log = logging.getLogger(__name__)

# Calls of `make` and of each class: (comm, length of the vector, settings).
SPARSE_ALLREDUCES: dict[str, Callable[[Communicator, int, Settings], SparseAllreduce]] = {
    "dense": DenseSum,
    "allgather": AllgatherSum,
    "gtopk": GlobalTopk,
    "recursive_doubling": RecursiveDoubling,
    "split_allgather": SplitAllgather,
    "dense_split_allgather": DenseSplitAllgather,
    "oktopk": OkTopk,
    "spardl": Spardl,
}


def make(name: str, comm: Communicator, length: int, settings: Settings) -> SparseAllreduce:
    """The sparse allreduce called `name`, for vectors of `length` elements."""
    if name not in SPARSE_ALLREDUCES:
        raise ConfigError(f"sparse.allreduce={name} is not one of {', '.join(SPARSE_ALLREDUCES)}")
    return SPARSE_ALLREDUCES[name](comm, length, settings)


def plan_all(
    length: int, k: int, ranks: int, settings: Settings, common: float = 0.0
) -> dict[str, Plan]:
    """Every variant's plan, dense included. `common`: the share of their entries that all ranks
    have at the same places.
    """
    value_bytes = 8 if settings.dtype == "float64" else 4
    per_entry = entry_bytes(length, k, value_bytes, settings.values)
    problem = Problem(length, k, ranks, value_bytes, per_entry, settings.qsgd_bits, common)
    return {name: plan(problem) for name, plan in PLANS.items()}


def fastest(
    length: int,
    k: int,
    ranks: int,
    settings: Settings,
    model: CostModel,
    selection_passes: float = 1.5,
) -> str:
    """The variant with the fewest predicted seconds, "dense" included, which alone needs no
    selection; says so in the log.

    `model` must be the same on all ranks, or ranks may choose differently: pass the one that was
    reduced or broadcast.
    """
    select_seconds = model.copy_seconds(selection_passes * length)
    seconds = {
        name: plan.seconds(model) + (0.0 if name == "dense" else select_seconds)
        for name, plan in plan_all(length, k, ranks, settings).items()
    }
    chosen = min(seconds, key=seconds.__getitem__)
    others = ", ".join(
        f"{name} {1e3 * value:.3g} ms"
        for name, value in sorted(seconds.items(), key=lambda item: item[1])
    )
    log.info(
        "sparse.allreduce=auto chose %s for k=%d of n=%d on %d ranks; predicted: %s",
        chosen,
        k,
        length,
        ranks,
        others,
    )
    return chosen
