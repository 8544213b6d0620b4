"""`dist-ml bench sparse_scaling`: every sparse allreduce by number of ranks, measured where there
are hosts, planned beyond.

The measured part also fits the cost model, is held against its plan, and holds words against
Ok-Topk's bound. What is planned for more ranks uses the model of as many ranks as have a core each.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Entries, Settings
from dist_ml.comm.sparse.family import make, plan_all
from dist_ml.comm.sparse.probe import probe
from dist_ml.config.convert import to_mapping
from dist_ml.launch import mpiexec
from dist_ml.measure.cost_model import CostModel

# The naive reference sums in fp64 and is no candidate; "dense" is planned as 2n(P-1)/P words, and
# measured on our ring.
VARIANTS = tuple(name for name in SPARSE_ALLREDUCES if name != "dense")
OVERLAP = 0.5  # share of a rank's support that all ranks have in common


@dataclass(frozen=True)
class SparseScalingBench:
    """What to exchange, over which links."""

    rate: str  # of the emulated network's links; one rank a host
    ranks: tuple[int, ...]  # measured
    planned_ranks: tuple[int, ...]  # by the cost model
    num_elements: int  # float32
    density: float
    steps: int  # of each variant; the last half is timed


def run(config: SparseScalingBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    worst, models = 0.0, {}
    with worlds.network(max(config.ranks), config.rate) as network:
        for ranks in config.ranks:
            environment = {"OMP_NUM_THREADS": "1"}
            measured = worlds.measure(
                "sparse_scaling",
                to_mapping(config),
                ranks=ranks,
                mpi="mpich",
                network=network,
                environment=environment,
            )
            models[ranks] = model = CostModel.from_mapping(measured["model"])
            for name, figures in measured["variants"].items():
                planned = _plan(config, ranks, model, OVERLAP)[name]["ms"]
                ratio = figures["ms"] / planned
                records.append(
                    {
                        "ranks": ranks,
                        "variant": name,
                        **figures,
                        "planned_ms": planned,
                        "over_planned": ratio,
                    }
                )
            bound = 6 * _k(config) * (ranks - 1) / ranks
            worst = max(worst, measured["variants"]["oktopk"]["words"] / bound)
            records.append({"ranks": ranks, **_figures_of(model)})
    uncrowded = max((ranks for ranks in models if ranks <= mpiexec.cores()), default=min(models))
    records += _planned(config, models[uncrowded])
    checks = [Check("oktopk words over 6k(P-1)/P", worst, 1.0, "lower")]
    return Result("sparse_scaling", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Words and messages of the rank with most, elements of the result, and seconds a call, by
    variant; and the cost model.
    """
    n, k, steps = (
        arguments["num_elements"],
        round(arguments["density"] * arguments["num_elements"]),
        arguments["steps"],
    )
    model = probe(comm)
    inputs = [contribution(n, k, comm.rank, step) for step in range(steps)]
    variants = {name: _one(comm, name, inputs, n, k) for name in VARIANTS}
    variants["dense"] = _dense(comm, n, steps // 2)
    return {"model": model.to_mapping(), "variants": variants}


def contribution(n: int, k: int, rank: int, step: int) -> Entries:
    """About k entries: half on a support that all ranks share in this step; magnitudes beyond a
    threshold, exponential.
    """
    shared, own = np.random.default_rng([step]), np.random.default_rng([step, rank + 1])
    common = shared.choice(n, round(OVERLAP * k), replace=False, shuffle=False)
    mine = own.choice(n, k - common.size, replace=False, shuffle=False)
    indices = np.unique(np.concatenate([common, mine])).astype(np.int32)
    values = (1 + own.exponential(0.25, indices.size)) * own.choice([-1.0, 1.0], indices.size)
    return Entries(indices, values.astype(np.float32))


def _one(comm: Communicator, name: str, inputs: list[Entries], n: int, k: int) -> dict[str, float]:
    variant = make(name, comm, n, Settings(qsgd_bits=4 if name == "dense_split_allgather" else 0))
    seconds, nonzeros, before = [], 0, comm.traffic.total()
    for step, own in enumerate(inputs):
        if step == len(inputs) // 2:
            before = comm.traffic.total()
        comm.barrier()
        start = time.perf_counter()
        total = variant.reduce(own, k)
        seconds.append(_slowest(comm, time.perf_counter() - start))
        nonzeros = total.nonzeros()
    timed = len(inputs) - len(inputs) // 2
    return _figures(comm, before, timed, nonzeros / n, seconds[len(inputs) // 2 :])


def _dense(comm: Communicator, n: int, steps: int) -> dict[str, float]:
    ring, vector, seconds, before = (
        family.make("ring", comm),
        np.ones(n, np.float32),
        [],
        comm.traffic.total(),
    )
    for _ in range(max(1, steps // 2)):
        comm.barrier()
        start = time.perf_counter()
        ring(vector)
        seconds.append(_slowest(comm, time.perf_counter() - start))
    return _figures(comm, before, len(seconds), 1.0, seconds)


def _figures(
    comm: Communicator, before: Any, steps: int, density: float, seconds: list[float]
) -> dict[str, float]:
    """32-bit words and messages a call, of the rank that sends most, since `before`; the sum's
    density and the median time.
    """
    after = comm.traffic.total()
    words = (after.bytes_sent - before.bytes_sent) / 4
    most = np.array([words, after.messages - before.messages], np.float64) / steps
    comm.allreduce(most, "max")
    return {
        "words": float(most[0]),
        "messages": float(most[1]),
        "density": density,
        "ms": 1e3 * statistics.median(seconds),
    }


def _slowest(comm: Communicator, seconds: float) -> float:
    slowest = np.array([seconds])
    comm.transport.allreduce(slowest, "max")  # not a part of what is measured: past the ledger
    return float(slowest[0])


def _k(config: SparseScalingBench) -> int:
    return round(config.density * config.num_elements)


def _plan(
    config: SparseScalingBench, ranks: int, model: CostModel, common: float = 0.0
) -> dict[str, dict[str, float]]:
    plans = plan_all(config.num_elements, _k(config), ranks, Settings(qsgd_bits=4), common)
    return {
        name: {
            "words": plan.words,
            "messages": plan.messages,
            "density": plan.result / config.num_elements,
            "ms": 1e3 * plan.seconds(model),
        }
        for name, plan in plans.items()
    }


def _figures_of(model: CostModel) -> Record:
    link = model.network
    return {
        "latency_us": 1e6 * link.latency_seconds,
        "mbit_per_second": 8e-6 * link.bytes_per_second,
        "merge_ns_an_entry": 1e9 * model.entry_seconds,
    }


def _planned(config: SparseScalingBench, model: CostModel) -> list[Record]:
    """A row a variant and number of ranks, and where the fastest changes."""
    records: list[Record] = []
    for ranks in config.planned_ranks:
        plans = _plan(config, ranks, model)
        records += [
            {"planned_ranks": ranks, "variant": name, **figures} for name, figures in plans.items()
        ]
    crossovers: list[Record] = []
    last = ""
    for ranks in range(2, max(config.planned_ranks) + 1):
        plans = _plan(config, ranks, model)
        name = min(plans, key=lambda name: plans[name]["ms"])
        if name != last:
            best, dense = plans[name]["ms"], plans["dense"]["ms"]
            crossovers.append(
                {"from_ranks": ranks, "fastest_by_plan": name, "ms": best, "dense_ms": dense}
            )
            last = name
    return records + crossovers


BENCH = Bench(
    "every sparse allreduce by number of ranks: words, messages, fill-in, seconds",
    SparseScalingBench,
    run,
    {"sparse_scaling": measure},
    ranks=8,
)
