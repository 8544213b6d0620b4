"""`dist-ml bench checkpoint`: saving and loading a checkpoint against what `dd` writes and reads of
the same size on the same disk, with torch.save and torch.load beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_ml.bench.bench import Bench
from dist_ml.bench.checkpoint_part import DD, LOAD, OURS, SAVE, SNAPSHOT, measure
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import ratio, spread


@dataclass(frozen=True)
class CheckpointBench:
    """What to save where."""

    folder: str  # on the disk that is measured; its part that this makes is removed
    mpi: str
    ranks: tuple[int, ...]  # that hold the same state, as in data parallelism
    num_matrices: int  # square float32 ones, each with a vector
    width: int
    rounds: int  # of alternation

    def __post_init__(self) -> None:
        if min(self.num_matrices, self.width, self.rounds, *self.ranks) < 1:
            raise ConfigError(f"every number of {self} must be 1 or more")


def run(config: CheckpointBench, worlds: Worlds) -> Result:
    arguments = {
        "folder": config.folder,
        "num_matrices": config.num_matrices,
        "width": config.width,
        "rounds": config.rounds,
    }
    num_bytes = 4 * config.num_matrices * (config.width**2 + config.width)
    records: list[Record] = []
    checks: list[Check] = []
    for ranks in config.ranks:
        seconds = worlds.measure(
            "checkpoint",
            arguments,
            ranks=ranks,
            mpi=config.mpi,
            environment={"OMP_NUM_THREADS": "1"},
        )
        records += rate_records(seconds, ranks, num_bytes)
        checks += rate_checks(seconds, ranks)
    return Result("checkpoint", records, checks)


def rate_records(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], ranks: int, num_bytes: int
) -> list[Record]:
    """A row a candidate: seconds, bytes of the state a second, and that over dd's."""
    return [
        {
            "ranks": ranks,
            "what": what,
            "candidate": name,
            "seconds": (middle := spread(values)).median,
            "low": middle.low,
            "high": middle.high,
            "GB_a_second": num_bytes / middle.median / 1e9,
            "over_dd": ratio(candidates[DD], values).median,
        }
        for what, candidates in seconds.items()
        for name, values in candidates.items()
    ]


def rate_checks(seconds: Mapping[str, Mapping[str, Sequence[float]]], ranks: int) -> list[Check]:
    """At least 70 % of dd's rate, and a copy for saving in the background that takes no fifth of
    the time of saving.
    """
    of_ranks = f"{ranks} rank{'s' * (ranks > 1)}"
    saving, loading = seconds[SAVE], seconds[LOAD]
    return [
        Check(f"saving over dd with fsync, {of_ranks}", ratio(saving[DD], saving[OURS]).median,
              0.7, "higher"),
        Check(f"loading over dd, cold, {of_ranks}", ratio(loading[DD], loading[OURS]).median,
              0.7, "higher"),
        Check(f"time that ranks wait for a copy over saving, {of_ranks}",
              ratio(saving[SNAPSHOT], saving[OURS]).median, 0.2, "lower"),
    ]  # fmt: skip


BENCH = Bench(
    "saving and loading checkpoints against dd and torch.save",
    CheckpointBench,
    run,
    {"checkpoint": measure},
    ranks=1,
)
