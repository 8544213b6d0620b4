"""`dist-ml bench collectives`: what our allreduce costs over mpi4py's own, by size."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Result, alternate, median_ratio
from dist_ml.bench.worlds import Worlds
from dist_ml.comm import mpi
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class CollectivesBench:
    """What to compare."""

    sizes_bytes: tuple[int, ...]  # of the float32 buffers
    rounds: int  # of alternation
    round_seconds: float  # that calls of one size and candidate are repeated for, in each round

    def __post_init__(self) -> None:
        if min(self.sizes_bytes) < 4:
            raise ConfigError(
                f"sizes_bytes={list(self.sizes_bytes)} must each hold a float32, 4 bytes"
            )


def run(config: CollectivesBench, worlds: Worlds) -> Result:
    seconds = worlds.measure("collectives", vars(config))
    records, added, ratios = [], [0.0], [0.0]
    for size, times in zip(config.sizes_bytes, seconds, strict=True):
        ours, raw = statistics.median(times["dist_ml"]), statistics.median(times["mpi4py"])
        ratio = median_ratio(times["dist_ml"], times["mpi4py"])
        added_microseconds = 1e6 * statistics.median(
            a - b for a, b in zip(times["dist_ml"], times["mpi4py"], strict=True)
        )
        records.append(
            {
                "bytes": size,
                "dist_ml_us": 1e6 * ours,
                "mpi4py_us": 1e6 * raw,
                "added_us": added_microseconds,
                "ratio": ratio,
            }
        )
        # Above a megabyte the noise of the memory exceeds what a call can add, and the ratio is
        # what counts.
        (ratios if size >= MEGABYTE else added).append(
            ratio if size >= MEGABYTE else added_microseconds
        )
    checks = [
        Check("A3 microseconds added per call", max(added), 10.0, "lower"),
        Check("A3 ratio at 1 MB and above", max(ratios), 1.02, "lower"),
    ]
    return Result("collectives", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[dict[str, list[float]]]:
    """Seconds a call, by candidate and round, for each size."""
    return [
        _one_size(comm, size, arguments["rounds"], arguments["round_seconds"])
        for size in arguments["sizes_bytes"]
    ]


def _one_size(
    comm: Communicator, size: int, rounds: int, round_seconds: float
) -> dict[str, list[float]]:
    x = torch.zeros(size // 4)
    raw = mpi.raw_allreduce(comm, x.numpy())
    once = torch.tensor(max(_seconds(comm, raw, 1), _seconds(comm, raw, 1)))
    comm.allreduce(once, "max")
    calls = max(1, int(round_seconds / once.item()))
    candidates = {
        "dist_ml": lambda: _seconds(comm, lambda: comm.allreduce(x), calls),
        "mpi4py": lambda: _seconds(comm, raw, calls),
    }
    alternate(candidates, 2)
    return alternate(candidates, rounds)


def _seconds(comm: Communicator, call: Callable[[], None], calls: int) -> float:
    comm.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


BENCH = Bench(
    "our allreduce against raw mpi4py, by size",
    CollectivesBench,
    run,
    {"collectives": measure},
    ranks=2,
)
