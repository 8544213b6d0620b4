"""All sparse allreduces by name, and the one that the cost model finds fastest."""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.allgather import AllgatherSum, DenseSum, allgather_cost, dense_cost
from dist_ml.comm.sparse.base import Settings, SparseAllreduce
from dist_ml.comm.sparse.cost import ExchangeCost, ExchangeSize, entry_bytes
from dist_ml.comm.sparse.gtopk import GlobalTopk, gtopk_cost
from dist_ml.comm.sparse.oktopk import OkTopk, oktopk_cost
from dist_ml.comm.sparse.recursive_doubling import RecursiveDoubling, recursive_doubling_cost
from dist_ml.comm.sparse.spardl import Spardl, spardl_cost
from dist_ml.comm.sparse.split import (
    DenseSplitAllgather,
    SplitAllgather,
    dense_split_allgather_cost,
    split_allgather_cost,
)
from dist_ml.config.names import require_one_of
from dist_ml.errors import ConfigError
from dist_ml.measure.cost_model import CostModel

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """One sparse allreduce.

    `make` is called with the communicator, the length of the vectors and the settings; `cost` says
    what an exchange costs before it runs; `reads` names the settings that change what it does,
    beside `dtype` and `seed`.
    """

    make: Callable[[Communicator, int, Settings], SparseAllreduce]
    cost: Callable[[ExchangeSize], ExchangeCost]
    reads: tuple[str, ...] = ("values",)


# A new sparse allreduce is a module and an entry here.
SPARSE_ALLREDUCES: dict[str, Member] = {
    "dense": Member(DenseSum, dense_cost, ()),
    "allgather": Member(AllgatherSum, allgather_cost),
    "gtopk": Member(GlobalTopk, gtopk_cost),
    "recursive_doubling": Member(RecursiveDoubling, recursive_doubling_cost),
    "split_allgather": Member(SplitAllgather, split_allgather_cost),
    "dense_split_allgather": Member(
        DenseSplitAllgather, dense_split_allgather_cost, ("values", "qsgd_bits")
    ),
    "oktopk": Member(OkTopk, oktopk_cost, ("values", "repartition_steps", "threshold_steps")),
    "spardl": Member(Spardl, spardl_cost, ("values", "repartition_steps")),
}


def make(name: str, comm: Communicator, length: int, settings: Settings) -> SparseAllreduce:
    """The sparse allreduce called `name`, for vectors of `length` elements. `ConfigError` for an
    unknown name, on all ranks that ask.
    """
    require_one_of("sparse.allreduce", name, SPARSE_ALLREDUCES)
    return SPARSE_ALLREDUCES[name].make(comm, length, settings)


def check(name: str, settings: Settings) -> None:
    """`ConfigError` for an unknown name (`auto` and `none` are known), and for a setting that the
    one called `name` does not read but that differs from its default, and where values of 64 bits
    would be rounded.

    `auto` may choose any of them, so it takes every setting.
    """
    require_one_of("sparse.allreduce", name, ["none", "auto", *SPARSE_ALLREDUCES])
    if settings.dtype == "float64" and settings.values in ("bf16", "int4"):
        raise ConfigError(
            f"sparse.values={settings.values} would round fp64 gradients to less than "
            "fp32; use sparse.values=fp32 or plain, or precision=fp32"
        )
    if name in ("none", "auto"):
        return
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        ignored = field.name not in ("dtype", "seed", *SPARSE_ALLREDUCES[name].reads)
        if ignored and value != field.default:
            readers = [n for n, member in SPARSE_ALLREDUCES.items() if field.name in member.reads]
            raise ConfigError(
                f"sparse.{field.name}={value} has no effect with sparse.allreduce={name}: only "
                f"{', '.join(readers)} can use it; leave it at {field.default}, or choose one of "
                "these"
            )


def costs(
    length: int, k: int, ranks: int, settings: Settings, common: float = 0.0
) -> dict[str, ExchangeCost]:
    """Every member's cost, dense included. `common`: the share of their entries that all ranks have
    at the same places.
    """
    value_bytes = 8 if settings.dtype == "float64" else 4
    per_entry = entry_bytes(length, k, value_bytes, settings.values)
    size = ExchangeSize(length, k, ranks, value_bytes, per_entry, settings.qsgd_bits, common)
    return {name: member.cost(size) for name, member in SPARSE_ALLREDUCES.items()}


def fastest(
    length: int,
    k: int,
    ranks: int,
    settings: Settings,
    model: CostModel,
    selection_passes: float = 1.5,
) -> str:
    """The member with the fewest predicted seconds, "dense" included, which alone needs no
    selection; says so in the log.

    `model` must be the same on all ranks, or ranks may choose differently: pass the one that was
    reduced or broadcast.
    """
    select_seconds = model.copy_seconds(selection_passes * length)
    seconds = {
        name: cost.seconds(model) + (0.0 if name == "dense" else select_seconds)
        for name, cost in costs(length, k, ranks, settings).items()
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
