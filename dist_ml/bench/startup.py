"""`dist-ml bench startup`: what it costs to start ranks, by their number: seconds, and what each
asks of the file system that all share.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.bench.bench import Bench
from dist_ml.bench.counted_start import CONFIGURATIONS, COUNTED, MADE, MODULES, OTHERS
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.worlds import Worlds
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch import mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork

_KEPT = 4000  # characters of what failing ranks said
_MOST_OPENED = 5  # files by a rank but rank 0, beside modules: its log
_MOST_GROWTH = 1.05  # of the modules that a rank reads, over one rank's


@dataclass(frozen=True)
class StartupBench:
    """What to start."""

    mpi: str
    ranks: tuple[int, ...]  # the first is what the others are compared with
    hosts: int  # emulated on this machine, which the ranks fill one after the other
    rate: str  # of the hosts' links
    overrides: tuple[str, ...]  # of `dist-ml train`: a run of few steps
    time_limit_seconds: float  # of one start

    def __post_init__(self) -> None:
        if not self.ranks or min(self.hosts, *self.ranks) < 1:
            raise ConfigError(f"ranks={list(self.ranks)} and hosts={self.hosts} must be 1 or more")
        if max(self.ranks) < 2:
            raise ConfigError(f"ranks={list(self.ranks)} must hold one above 1, to be compared")
        if not self.time_limit_seconds > 0:
            raise ConfigError(f"time_limit_seconds={self.time_limit_seconds} must be above 0")


@dataclass(frozen=True)
class Start:
    """One start of so many ranks. `counts`: of each rank, by what is counted."""

    ranks: int
    seconds: float  # from the launcher's start to its end
    training_seconds: float  # of these
    counts: Sequence[Mapping[str, int]]

    def others(self, counted: str) -> list[int]:
        """What the ranks but the first did."""
        return [each[counted] for each in self.counts[1:]]


def run(config: StartupBench, worlds: Worlds) -> Result:
    with worlds.network(config.hosts, config.rate) as network:
        starts = [start(config, ranks, network) for ranks in config.ranks]
    return Result("startup", records(starts), checks(starts))


def start(config: StartupBench, ranks: int, network: EmulatedNetwork) -> Start:
    """Start `dist-ml train` on so many ranks, which make their mesh, train and end."""
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as name:
        folder = Path(name)
        train = ["dist_ml", "train", *config.overrides, f"folder={folder / 'run'}"]
        began = time.perf_counter()
        done = mpiexec.run(
            [sys.executable, "-m", "dist_ml.bench.counted_start", name, *train],
            ranks,
            config.mpi,
            time_limit_seconds=config.time_limit_seconds,
            capture=True,
            environment={"OMP_NUM_THREADS": "1"},
            network=network,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise MachineError(
                f"{ranks} ranks ended with status {done.returncode}:\n{done.stderr[-_KEPT:]}"
            )
        counts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
        summary = json.loads((folder / "run" / "summary.json").read_text())
        return Start(ranks, seconds, summary["seconds"], counts)


def records(starts: Sequence[Start]) -> list[Record]:
    """A row a number of ranks: seconds, and what rank 0 and the most of any other rank did."""
    return [
        {
            "ranks": each.ranks,
            "seconds": each.seconds,
            "but_training": each.seconds - each.training_seconds,
            **{f"{name}, rank 0": each.counts[0][name] for name in COUNTED},
            **{f"{name}, others": max(each.others(name), default=None) for name in COUNTED},
        }
        for each in starts
    ]


def checks(starts: Sequence[Start]) -> list[Check]:
    """Rank 0 alone reads configurations and makes folders; what a rank reads does not grow with
    the number of ranks.
    """

    def of_others(counted: str) -> float:
        return most(count for each in starts for count in each.others(counted))

    growth = most(
        count / each.counts[0][MODULES] for each in starts for count in each.others(MODULES)
    )
    return [
        Check("configurations opened by ranks but rank 0", of_others(CONFIGURATIONS), 0, "lower"),
        Check("folders made by ranks but rank 0", of_others(MADE), 0, "lower"),
        Check(
            "files but modules opened by ranks but rank 0",
            of_others(OTHERS),
            _MOST_OPENED,
            "lower",
        ),
        Check("modules opened by a rank over rank 0's", growth, _MOST_GROWTH, "lower"),
    ]


BENCH = Bench(
    "what starting ranks costs, and what each asks of the file system", StartupBench, run, {}, 64
)
