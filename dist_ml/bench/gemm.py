"""`dist-ml bench gemm`: distributed products against the local kernel on the same cores, against
Heat, and how much overlap hides.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.gemm import family, matrix
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.experiment import panel_shapes, tuned_product
from dist_ml.gemm.multiply import Gemm
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.kernels import kernels, peak
from dist_ml.kernels.measure import operands
from dist_ml.kernels.product import Product
from dist_ml.kernels.tuner import Shape
from dist_ml.launch.emulated_network import missing
from dist_ml.launch.mpiexec import cores
from dist_ml.measure.compare import alternate, ratio

SPLITS = tuple((a, b) for a in (None, 0, 1) for b in (None, 0, 1))[
    1:
]  # how Heat can distribute A and B; not both whole


@dataclass(frozen=True)
class GemmBench:
    """What to compare."""

    size: int  # m = n = k of the float32 product
    algorithms: tuple[str, ...]  # against the local kernel
    rounds: int  # of alternation
    heat: bool  # against Heat's matmul, where that is installed
    emulated_network: bool  # overlap on 4 hosts over shaped links, where this machine can make them
    emulated_rate: str  # of each link
    emulated_panel: int  # width of the panels there


def run(config: GemmBench, worlds: Worlds) -> Result:
    arguments = {
        "size": config.size,
        "algorithms": config.algorithms,
        "rounds": config.rounds,
        "heat": config.heat,
    }
    measured = worlds.measure("gemm", arguments)
    seconds, roof = measured["seconds"], measured["peak"]
    flops = 2.0 * config.size**3
    kernel = seconds["local kernel"]
    records: list[Record] = [
        {
            "product": name,
            "GFLOP/s": flops / statistics.median(times) / 1e9,
            "of the local kernel": ratio(kernel, times).median,
        }
        for name, times in seconds.items()
    ]
    checks = [
        Check("auto over the local kernel", ratio(kernel, seconds["auto"]).median, 0.92, "higher")
    ]
    heat = [name for name in seconds if name.startswith("heat")]
    if roof is not None:
        records.append(
            {
                "measured": "peak GFLOP/s of all cores (multiply-adds on registers)",
                "value": roof / 1e9,
            }
        )
        rates = {"the local kernel": kernel, **({"Heat": seconds[heat[0]]} if heat else {})}
        for name, times in rates.items():
            most = roof * statistics.median(times) / flops
            records.append(
                {
                    "measured": f"times faster than {name} that nothing can exceed here",
                    "value": most,
                }
            )
    if heat:
        checks.append(
            Check("auto over Heat", ratio(seconds[heat[0]], seconds["auto"]).median, 2.2, "higher")
        )
    elif config.heat:
        records.append({"left out": "Heat", "because": "it is not installed (extra: heat)"})
    if config.emulated_network:
        _overlap(config, worlds, records, checks)
    return Result("gemm", records, checks)


def _overlap(config: GemmBench, worlds: Worlds, records: list[Record], checks: list[Check]) -> None:
    lacking = missing()
    if lacking is not None:
        records.append({"left out": "overlap in the emulated network", "because": lacking})
        return
    arguments = {"size": config.size, "panel": config.emulated_panel, "rounds": config.rounds}
    with worlds.network(4, config.emulated_rate) as network:
        before = network.traffic()
        found = worlds.measure("gemm overlap", arguments, ranks=4, network=network)
        crossed = [now - then for now, then in zip(network.traffic(), before, strict=True)]
    times, processor = (
        found["seconds"],
        {name: statistics.median(used) for name, used in found["processor"].items()},
    )
    together, apart = (
        times["together"],
        list(zip(times["communication"], times["computing"], strict=True)),
    )
    hidden = statistics.median(
        (x + y - both) / min(x, y) for (x, y), both in zip(apart, together, strict=True)
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    records += [
        {"summa on 4 hosts": name, "seconds": value, "processor seconds": processor[name]}
        for name, value in seconds.items()
    ]
    # All hosts share this machine's cores: what communicating adds to their work is time that
    # nothing can hide.
    added = (processor["together"] - processor["computing"]) / cores()
    busy = processor["together"] / (cores() * seconds["together"])
    records.append({"measured": "share of the cores' time in use, together", "value": busy})
    most = 1 - added / min(seconds["communication"], seconds["computing"])
    records.append({"measured": "share that could hide at that processor time", "value": most})
    records.append(
        {
            "measured": "bytes that left each host",
            "value": str([traffic.sent_bytes for traffic in crossed]),
        }
    )
    checks.append(Check("overlap hides of the smaller", hidden, 0.8, "higher"))


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
            candidates["local kernel"] = _local([block], product, comm)
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
    return lambda: _slowest(comm, lambda: gemm(a, b, c))


def _local(steps: Sequence[Shape], product: Product, comm: Communicator) -> Callable[[], float]:
    """All ranks multiply what they have, step by step into one C, at once and without
    communication.
    """
    c, _, _ = operands(steps[0])
    panels = [operands(step)[1:] for step in steps]

    def multiply() -> None:
        for step, (a, b) in enumerate(panels):
            product(c, a, b, 1.0, float(step > 0))

    return lambda: _slowest(comm, multiply)


def _best_heat(size: int, comm: Communicator) -> dict[str, Callable[[], float]]:
    """Heat's product with the pair of splits that is fastest here."""
    heat = importlib.import_module("heat")

    def candidate(splits: tuple[int | None, int | None]) -> Callable[[], float]:
        a, b = (heat.random.rand(size, size, split=split, dtype=heat.float32) for split in splits)
        return lambda: _slowest(comm, lambda: heat.matmul(a, b))

    seconds: dict[tuple[int | None, int | None], float] = {}
    for splits in SPLITS:
        call = candidate(splits)
        seconds[splits] = min(call(), call())
    best = min(seconds, key=lambda splits: seconds[splits])
    return {f"heat, splits {best[0]} and {best[1]}": candidate(best)}


def _slowest(comm: Communicator, call: Callable[[], Any]) -> float:
    """Seconds until the last rank is done; the same number on all ranks."""
    comm.barrier()
    start = time.perf_counter()
    call()
    taken = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    comm.allreduce(taken, "max")
    return float(taken)


PARTS = {"gemm": measure, "gemm overlap": measure_overlap}
BENCH = Bench(
    "distributed products against the local kernel, Heat and the network",
    GemmBench,
    run,
    PARTS,
    ranks=2,
)
