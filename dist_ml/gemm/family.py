"""The family of distributed products: `GEMMS` names each algorithm's planner and executor.

A new algorithm is one module in `algorithms` and one entry here; the configuration accepts what the
dict holds, and `auto`. Nothing here needs torch or MPI until a plan runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from dist_ml.config.names import require_one_of
from dist_ml.errors import ConfigError
from dist_ml.gemm.algorithms import cannon, carma, cosma, gather, gathering, summa, summa_25d
from dist_ml.gemm.auto import best_plan
from dist_ml.gemm.choice import Choice, Orders

if TYPE_CHECKING:
    from dist_ml.gemm.grid_comm import GridComm
    from dist_ml.gemm.matrix import ShardedMatrix
    from dist_ml.gemm.plan import Plan
    from dist_ml.gemm.product_shape import ProductShape
    from dist_ml.gemm.tile_sum import ProductSums
    from dist_ml.measure.cost_model import CostModel


class Planner(Protocol):
    """A pure function. `ConfigError` for a choice that the algorithm can't take, or too little
    memory.
    """

    def __call__(self, shape: ProductShape, choice: Choice, orders: Orders) -> Plan: ...


class Executor(Protocol):
    """Runs a plan on this rank of its grid: adds all panels' products to `sums`. Collective over
    the grid. Words and messages: `plan.moved(rank)`.
    """

    def __call__(
        self, plan: Plan, comms: GridComm, a: ShardedMatrix, b: ShardedMatrix, sums: ProductSums
    ) -> None: ...


class Algorithm(NamedTuple):
    """`honours` names the fields of `Choice` that have an effect; others are refused."""

    plan: Planner
    multiply: Executor
    honours: tuple[str, ...]


GEMMS: dict[str, Algorithm] = {
    "cosma": Algorithm(cosma.plan, gathering.multiply, ("grid", "panel", "tiles")),
    "carma": Algorithm(carma.plan, gathering.multiply, ("grid", "panel", "tiles")),
    "summa": Algorithm(summa.plan, summa.multiply, ("grid", "panel")),
    "summa_25d": Algorithm(summa_25d.plan, summa.multiply, ("grid", "panel", "replication")),
    "cannon": Algorithm(cannon.plan, cannon.multiply, ("grid",)),
    "gather": Algorithm(gather.plan, gathering.multiply, ("grid", "tiles")),
}

AUTO = "auto"
NAMES = (AUTO, *GEMMS)


def plan(
    algorithm: str,
    shape: ProductShape,
    choice: Choice | None = None,
    orders: Orders | None = None,
    model: CostModel | None = None,
) -> Plan:
    """The plan of `algorithm`; with `auto`, the best of all: by predicted seconds on `model`'s
    machine, or by fewest words without one.

    `ConfigError` for an unknown algorithm, a choice that it doesn't take, a grid that doesn't fit,
    or too little memory.
    """
    require_one_of("algorithm", algorithm, NAMES)
    choice, orders = choice or Choice(), orders or Orders()
    choice.check()
    if algorithm == AUTO:
        return best_plan(_possible(shape, choice, orders), model)
    ignored = [name for name in choice.fixed if name not in GEMMS[algorithm].honours]
    if ignored:
        raise ConfigError(
            f"{ignored[0]}={getattr(choice, ignored[0])} has no effect on {algorithm}; leave it "
            f"null, or use {' or '.join(_honouring(choice)) or 'another algorithm'}"
        )
    return GEMMS[algorithm].plan(shape, choice, orders)


def _possible(shape: ProductShape, choice: Choice, orders: Orders) -> list[Plan]:
    """The plans of all algorithms that honour the choice and can carry it out; the first one's
    error where there is none.
    """
    names = _honouring(choice)
    if not names:
        raise ConfigError(
            f"no algorithm takes {' and '.join(choice.fixed)} together; leave one of them null"
        )
    plans, errors = [], []
    for name in names:
        try:
            plans.append(GEMMS[name].plan(shape, choice, orders))
        except ConfigError as error:
            errors.append(error)
    if not plans:
        raise errors[0]
    return plans


def _honouring(choice: Choice) -> list[str]:
    return [name for name, entry in GEMMS.items() if set(choice.fixed) <= set(entry.honours)]
