"""`dist-ml bench data_parallel`: a user's own loop with `dist_ml.DataParallel`, against the same
loop with torch's DDP over gloo and over our backend, and on one rank against plain PyTorch. On
several ranks plain PyTorch exchanges nothing: what is over it is the exchange's part.
"""

from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.data_parallel_part import DDP, OURS, OVER_US, PLAIN, measure
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.user_models import USER_MODELS
from dist_ml.bench.worlds import Worlds
from dist_ml.config.names import require_one_of
from dist_ml.measure.compare import ratio, spread


@dataclass(frozen=True)
class DataParallelBench:
    """What to train, on how many ranks."""

    models: tuple[str, ...]
    batch: int  # samples a rank
    mpi: str
    ranks: int
    rounds: int
    steps: int  # a round

    def __post_init__(self) -> None:
        for name in self.models:
            require_one_of("models", name, USER_MODELS)


_MOST_OVER_DDP, _MOST_OVER_PLAIN, _MOST_APART = 0.65, 1.03, 1e-4


def run(config: DataParallelBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    for model in config.models:
        for ranks, other, limit in (
            (config.ranks, DDP, _MOST_OVER_DDP),
            (1, PLAIN, _MOST_OVER_PLAIN),
        ):
            found = _measured(config, worlds, model, ranks)
            over = ratio(found["seconds"][OURS], found["seconds"][other])
            where = f"{model}, {ranks} rank{'s' if ranks > 1 else ''}"
            records += _rows(model, ranks, found)
            if ranks > 1:
                ddp = ratio(found["seconds"][OVER_US], found["seconds"][DDP]).median
                checks.append(Check(f"ddp dist_ml over ddp gloo, {where}", ddp, limit, "lower"))
            checks += [
                Check(f"step over {other}, {where}", over.median, limit, "lower"),
                Check(f"losses differ by, {where}", found["loss"], _MOST_APART, "lower"),
            ]
    return Result("data_parallel", records, checks)


def _measured(config: DataParallelBench, worlds: Worlds, model: str, ranks: int) -> dict[str, Any]:
    found = worlds.measure(
        "data_parallel",
        {"model": model, "batch": config.batch, "rounds": config.rounds, "steps": config.steps},
        ranks=ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return dict(found)


def _rows(model: str, ranks: int, found: dict[str, Any]) -> list[Record]:
    rows: list[Record] = []
    for name, seconds in found["seconds"].items():
        middle = spread(seconds)
        rows.append(
            {
                "model": model,
                "parameters": found["parameters"],
                "ranks": ranks,
                "loop with": name,
                "ms": 1e3 * middle.median,
                "low": 1e3 * middle.low,
                "high": 1e3 * middle.high,
            }
        )
    return rows


BENCH = Bench(
    "a user's own loop with DataParallel against DDP, and against plain PyTorch on one rank",
    DataParallelBench,
    run,
    {"data_parallel": measure},
    ranks=2,
)
