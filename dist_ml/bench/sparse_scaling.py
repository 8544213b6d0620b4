"""`dist-ml bench sparse_scaling`: every sparse allreduce by number of ranks, measured where there
are hosts, planned beyond.

The measured part also fits the links, is held against its plan, and holds words against Ok-Topk's
bound. The plan's own constants (`comm/sparse/cost.py`) were fitted to 25 M elements at 1 %; the
sizes here are others. What is planned for more ranks uses the model of as many ranks as have a core
each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, least, most
from dist_ml.bench.sparse_scaling_part import OVERLAP, measure
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.sparse import Settings
from dist_ml.comm.sparse.family import costs
from dist_ml.config.convert import to_mapping
from dist_ml.launch import mpiexec
from dist_ml.measure.cost_model import CostModel


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
    models: dict[int, CostModel] = {}
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
            records.append({"ranks": ranks, **_figures_of(model)})
    uncrowded = max((ranks for ranks in models if ranks <= mpiexec.cores()), default=min(models))
    records += _planned(config, models[uncrowded])
    checks = [*oktopk_checks(records, _k(config)), plan_check(records)]
    return Result("sparse_scaling", records, checks)


def plan_check(records: Sequence[Record]) -> Check:
    """How many of the plans are within a factor of two of what was measured."""
    ratios = [record["over_planned"] for record in records if "over_planned" in record]
    within = sum(0.5 <= ratio <= 2.0 for ratio in ratios) / len(ratios)
    return Check("share of plans within a factor of two of the measured", within, 0.9, "higher")


def oktopk_checks(records: Sequence[Record], k: int) -> list[Check]:
    """Words of the rank that sends most, over 6k(P-1)/P, which holds for supports that ranks share
    in part; a rank sends at least its own k(P-1)/P entries, two words each.
    """
    shares = [
        record["words"] / (6 * k * (record["ranks"] - 1) / record["ranks"])
        for record in records
        if record.get("variant") == "oktopk" and record.get("ranks", 1) > 1
    ]
    return [
        Check("oktopk words over 6k(P-1)/P, most", most(shares), 1.0, "lower"),
        Check("oktopk words over 6k(P-1)/P, least", least(shares), 1 / 6, "higher"),
    ]


def _k(config: SparseScalingBench) -> int:
    return round(config.density * config.num_elements)


def _plan(
    config: SparseScalingBench, ranks: int, model: CostModel, common: float = 0.0
) -> dict[str, dict[str, float]]:
    planned = costs(config.num_elements, _k(config), ranks, Settings(qsgd_bits=4), common)
    return {
        name: {
            "words": cost.words,
            "messages": cost.messages,
            "density": cost.result / config.num_elements,
            "ms": 1e3 * cost.seconds(model),
        }
        for name, cost in planned.items()
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
