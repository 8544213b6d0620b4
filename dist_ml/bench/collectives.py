"""`dist-ml bench collectives`: what our allreduce costs over mpi4py's own, by size."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dist_ml.bench import recorder_part
from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.osu import Series
from dist_ml.bench.worlds import Worlds
from dist_ml.comm import mpi
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import compare, difference, ratio, seconds_per_call

MEGABYTE = 1 << 20
OURS, RAW = "dist_ml", "mpi4py"


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
    records: list[Record] = []
    for size, times in zip(config.sizes_bytes, seconds, strict=True):
        added, over = difference(times[OURS], times[RAW]), ratio(times[OURS], times[RAW])
        records.append(
            {
                "bytes": size,
                "dist_ml_us": 1e6 * statistics.median(times[OURS]),
                "mpi4py_us": 1e6 * statistics.median(times[RAW]),
                "added_us": 1e6 * added.median,
                "low_us": 1e6 * added.low,
                "high_us": 1e6 * added.high,
                "ratio": over.median,
            }
        )
    recording = worlds.measure("recorder", {"rounds": config.rounds})
    return Result("collectives", records, [*size_checks(records), *recorder_checks(recording)])


def size_checks(records: Sequence[Record]) -> list[Check]:
    """What a call adds below a megabyte, and the ratio from there on, where the noise of the memory
    exceeds what a call can add. A part without sizes has no check.
    """
    small = [record["added_us"] for record in records if record["bytes"] < MEGABYTE]
    large = [record["ratio"] for record in records if record["bytes"] >= MEGABYTE]
    checks = []
    if small:
        checks.append(Check("microseconds added to mpi4py below 1 MB", most(small), 10.0, "lower"))
    if large:
        checks.append(Check("time over mpi4py from 1 MB on", most(large), 1.02, "lower"))
    return checks


def recorder_checks(seconds: Mapping[str, Sequence[float]]) -> list[Check]:
    """The flight recorder's part of what a call adds."""
    return [
        Check(f"microseconds to record a {kind}", 1e6 * statistics.median(rounds), 1.0, "lower")
        for kind, rounds in seconds.items()
    ]


def latencies(result: Result) -> list[Series]:
    """Ours first."""
    return [
        Series(name, {row["bytes"]: row[f"{name}_us"] for row in result.records})
        for name in (OURS, RAW)
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[dict[str, list[float]]]:
    """Seconds a call of the slowest rank, by candidate and round, for each size."""
    return [
        _one_size(comm, size, arguments["rounds"], arguments["round_seconds"])
        for size in arguments["sizes_bytes"]
    ]


def _one_size(
    comm: Communicator, size: int, rounds: int, round_seconds: float
) -> dict[str, list[float]]:
    """Both reduce the same buffer, in pairs that follow one another."""
    x = torch.zeros(size // 4)
    raw = mpi.raw_allreduce(comm, x.numpy())
    once = max(seconds_per_call(comm, raw), seconds_per_call(comm, raw))
    calls = max(1, int(round_seconds / once))
    candidates = {OURS: lambda: comm.allreduce(x), RAW: raw}
    return compare(comm, candidates, rounds, repeats=calls, warm_up_rounds=2)


BENCH = Bench(
    "our allreduce against raw mpi4py, by size",
    CollectivesBench,
    run,
    {"collectives": measure, "recorder": recorder_part.measure},
    ranks=2,
    latencies=latencies,
)
