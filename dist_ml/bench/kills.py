"""`dist-ml bench kills`: runs that are killed at random times, again and again: a checkpoint always
loads, and what they come to is what an undisturbed run comes to, to the last bit.
"""

import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.killed_run import (
    VICTIMS,
    Death,
    Kill,
    Killer,
    death_of,
    plan,
    steps_gone_on_from,
    unlike_losses,
)
from dist_ml.bench.worlds import Worlds
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch import mpiexec
from dist_ml.launch.job import Completed
from dist_ml.partition import counts
from dist_ml.train.run_difference import compare_runs
from dist_ml.train.run_folder import RunFolder

_ASYNCHRONOUS = (False, True)
_MARK = "DIST_ML_KILLS"
_KEPT = 4000  # characters of what failing ranks said


@dataclass(frozen=True)
class KillsBench:
    """What to train, and how often to kill it."""

    mpis: tuple[str, ...]
    ranks: int
    kills: int  # in all; a share of them under each MPI with each way of saving
    seed: int
    longest_wait_seconds: float  # for a kill, once a run trains
    time_limit_seconds: float  # of a start
    overrides: tuple[str, ...]  # of `dist-ml train`

    def __post_init__(self) -> None:
        if min(self.ranks, self.kills) < 1:
            raise ConfigError(f"ranks={self.ranks} and kills={self.kills} must be 1 or more")
        if not (self.longest_wait_seconds >= 0 and self.time_limit_seconds > 0):
            raise ConfigError(
                f"longest_wait_seconds={self.longest_wait_seconds} must be at least 0, and "
                f"time_limit_seconds={self.time_limit_seconds} above 0"
            )


@dataclass(frozen=True)
class KilledRun:
    """A run that came to its end, with what it came to beside an undisturbed one."""

    deaths: Sequence[Death]
    survived: int
    unlike_losses: int
    difference: str | None  # the first, of all that both have kept


def run(config: KillsBench, worlds: Worlds) -> Result:  # noqa: ARG001 - it starts its own
    ways = [(mpi, asynchronous) for mpi in config.mpis for asynchronous in _ASYNCHRONOUS]
    rows: list[Record] = []
    runs: list[KilledRun] = []
    for (mpi, asynchronous), number in zip(ways, counts(config.kills, len(ways)), strict=True):
        seed = f"{config.seed} {mpi} {asynchronous}"
        kills = plan(number, config.ranks, config.longest_wait_seconds, seed)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as root:
            found = Runs(config, mpi, asynchronous, Path(root)).make(kills)
        rows.append(record(mpi, asynchronous, found, time.perf_counter() - began))
        runs += found
    return Result("kills", rows, checks(runs, config.kills))


class Runs:
    """Runs in folders below `root`, one after the other."""

    def __init__(self, config: KillsBench, mpi: str, asynchronous: bool, root: Path) -> None:
        self._config, self._mpi, self._root = config, mpi, root
        saving = f"checkpoint.asynchronous={str(asynchronous).lower()}"
        self._overrides = (*config.overrides, saving, "resume=auto")

    def make(self, kills: Sequence[Kill]) -> list[KilledRun]:
        """All `kills`, in as many runs as they take."""
        whole, left = self._root / "whole", list(kills)
        runs: list[KilledRun] = []
        self._life(whole, None)
        while left:
            folder = self._root / f"killed-{len(runs)}"
            deaths = self._until_the_end(folder, left)
            starts = zip(deaths, steps_gone_on_from(folder), strict=False)
            survived = sum(death.step == step and not death.problem for death, step in starts)
            unlike, difference = (
                unlike_losses(folder, whole),
                compare_runs(folder, whole).difference,
            )
            runs.append(KilledRun(deaths, survived, unlike, difference))
        return runs

    def _until_the_end(self, folder: Path, left: list[Kill]) -> list[Death]:
        """A run, and what killed it: the first of those that are `left`, which are taken away."""
        deaths = []
        while self._life(folder, left[0] if left else None):
            deaths.append(death_of(folder, left.pop(0)))
        return deaths

    def _life(self, folder: Path, kill: Kill | None) -> bool:
        """Start the run, or go on with it, to its end or its `kill`; was it killed?"""
        mark = uuid.uuid4().hex
        killer = Killer(kill, folder, f"{_MARK}={mark}") if kill else None
        with killer or nullcontext():
            done = self._start(folder, mark)
        if done.returncode == 0 or RunFolder(folder).summary.exists():
            return False  # perhaps it was killed when it had come to its end
        if killer is None or not killer.struck:
            raise MachineError(
                f"a run that nobody killed ended with status {done.returncode}:\n"
                f"{done.stderr[-_KEPT:]}{done.stacks[-_KEPT:]}"
            )
        return True

    def _start(self, folder: Path, mark: str) -> Completed:
        train = ["-m", "dist_ml", "train", *self._overrides, f"folder={folder}"]
        return mpiexec.run(
            [sys.executable, *train],
            self._config.ranks,
            self._mpi,
            time_limit_seconds=self._config.time_limit_seconds,
            capture=True,
            environment={"OMP_NUM_THREADS": "1", _MARK: mark},
        )


def record(mpi: str, asynchronous: bool, runs: Sequence[KilledRun], seconds: float) -> Record:
    """A row of all runs under one MPI with one way of saving."""
    deaths = [death for each in runs for death in each.deaths]
    problems = [death.problem for death in deaths if death.problem]
    problems += [each.difference for each in runs if each.difference is not None]
    return {
        "mpi": mpi,
        "saving": "asynchronous" if asynchronous else "synchronous",
        "kills": len(deaths),
        **{f"of {who}": sum(death.victim == who for death in deaths) for who in VICTIMS},
        "within a save": sum(death.is_within_save for death in deaths),
        "runs": len(runs),
        "seconds a kill": seconds / len(deaths) if deaths else None,
        "problem": problems[0] if problems else None,
    }


def checks(runs: Sequence[KilledRun], kills: int) -> list[Check]:
    """All kills were survived, a quarter of them met a save, and nothing came out otherwise."""
    within = sum(death.is_within_save for each in runs for death in each.deaths)
    return [
        Check("kills survived", sum(each.survived for each in runs), kills, "higher"),
        Check("kills within a save", within, kills // 4, "higher"),
        Check("losses unlike", sum(each.unlike_losses for each in runs), 0, "lower"),
        Check("runs unlike", sum(each.difference is not None for each in runs), 0, "lower"),
    ]


BENCH = Bench(
    "runs that are killed at random times come to what undisturbed ones do", KillsBench, run, {}, 2
)
