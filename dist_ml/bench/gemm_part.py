"""The ranks' parts of `dist-ml bench gemm`: products alone, and beside communication."""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm import family, matrix
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.experiment import panel_shapes, tuned_product
from dist_ml.gemm.multiply import Gemm
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.kernels import kernels, peak
from dist_ml.kernels.product import Product
from dist_ml.kernels.rates import operands
from dist_ml.kernels.tuner import Shape
from dist_ml.measure.compare import alternate, seconds_per_call

# How Heat can distribute A and B; not both whole.
SPLITS = tuple((a, b) for a in (None, 0, 1) for b in (None, 0, 1))[1:]
LOCAL = "local kernel"


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the slowest rank, by candidate and round, and the peak of the cores that ranks
    compute on.

    The local kernel computes the same share on all ranks at once.
    """
    size = arguments["size"]
    candidates: dict[str, Callable[[], float]] = {}
    for name in arguments["algorithms"]:
        plan = family.plan(name, ProductShape(size, size, size, comm.size))
        panels = panel_shapes(plan)
        block = panels[0]._replace(k=plan.block(0)[2].size)
        product = tuned_product(kernels.AUTO, [block, *panels], comm)
        if not candidates:
            candidates[LOCAL] = _local([block], product, comm)
        candidates[name] = _distributed(plan, product, comm)
    if arguments["heat"] and importlib.util.find_spec("heat") is not None:
        candidates |= _best_heat(size, comm)
    alternate(candidates, 1)
    return {"seconds": alternate(candidates, arguments["rounds"]), "peak": _peak(comm)}


def _peak(comm: Communicator) -> float | None:
    """FLOP/s of all ranks' threads, each rank measuring one of its threads at the same time as the
    others.
    """
    comm.barrier()
    mine = peak.flops_per_second()
    told: list[float | None] = comm.allgather_objects(
        None if mine is None else mine * torch.get_num_threads()
    )
    rates = [rate for rate in told if rate is not None]
    return sum(rates) if len(rates) == comm.size else None


def measure_overlap(
    comm: Communicator, arguments: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Of SUMMA as it is, with products left out, and with communication left out: seconds, and
    processor time of all ranks.
    """
    size = arguments["size"]
    plan = family.plan(
        "summa", ProductShape(size, size, size, comm.size), Choice(panel=arguments["panel"])
    )
    panels = panel_shapes(plan)
    product = tuned_product(kernels.AUTO, panels, comm)
    candidates = {
        "together": _distributed(plan, product, comm),
        "communication": _distributed(plan, lambda *_: None, comm),
        "computing": _local(panels, product, comm),
    }
    alternate(candidates, 1)
    processor: dict[str, list[float]] = {name: [] for name in candidates}
    watched = {name: _watched(call, processor[name], comm) for name, call in candidates.items()}
    return {"seconds": alternate(watched, arguments["rounds"]), "processor": processor}


def _watched(
    call: Callable[[], float], used: list[float], comm: Communicator
) -> Callable[[], float]:
    """`call`, that also enters what processor time all ranks' threads together used."""

    def watched() -> float:
        before = time.process_time()
        seconds = call()
        spent = torch.tensor([time.process_time() - before], dtype=torch.float64)
        comm.allreduce(spent)
        used.append(float(spent))
        return seconds

    return watched


def _distributed(plan: Plan, product: Product, comm: Communicator) -> Callable[[], float]:
    a, b = matrix.random(plan.layout_a, comm, 1), matrix.random(plan.layout_b, comm, 2)
    c = matrix.zeros(plan.layout_c, comm)
    gemm = Gemm(plan, comm, product)
    return lambda: seconds_per_call(comm, lambda: gemm(a, b, c))


def _local(steps: Sequence[Shape], product: Product, comm: Communicator) -> Callable[[], float]:
    """All ranks multiply what they have, step by step into one C, at once and without
    communication.
    """
    c, _, _ = operands(steps[0])
    panels = [operands(step)[1:] for step in steps]

    def multiply() -> None:
        for step, (a, b) in enumerate(panels):
            product(c, a, b, 1.0, float(step > 0))

    return lambda: seconds_per_call(comm, multiply)


def _best_heat(size: int, comm: Communicator) -> dict[str, Callable[[], float]]:
    """Heat's product with the pair of splits that is fastest here."""
    heat = importlib.import_module("heat")

    def candidate(splits: tuple[int | None, int | None]) -> Callable[[], float]:
        a, b = (heat.random.rand(size, size, split=split, dtype=heat.float32) for split in splits)
        return lambda: seconds_per_call(comm, lambda: heat.matmul(a, b))

    seconds: dict[tuple[int | None, int | None], float] = {}
    for splits in SPLITS:
        call = candidate(splits)
        seconds[splits] = min(call(), call())
    best = min(seconds, key=lambda splits: seconds[splits])
    return {f"heat, splits {best[0]} and {best[1]}": candidate(best)}
