"""`dist-ml bench failures`: one rank of a training run goes wrong, in each way, exchange and MPI.
How soon does the job end, whom does it name, and what does it leave?
"""

import logging
import re
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from dist_ml.bench import torch_analyser
from dist_ml.bench.bench import Bench
from dist_ml.bench.faults import EXCHANGES, FAILED_AT, FAULTS, RUN
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.worlds import ThisWorld, Worlds
from dist_ml.config.names import require_one_of
from dist_ml.errors import ConfigError, DistMLError, MachineError
from dist_ml.flight import record_file, torch_export
from dist_ml.flight.diagnosis import diagnose
from dist_ml.launch import mpiexec, process, shared_memory
from dist_ml.launch.job import Completed

log = logging.getLogger(__name__)

_AT_ONCE = ("raise", "kill")  # they end the job themselves; the others by the watchdog
_MOST_SECONDS, _MOST_BEYOND_LIMIT = 15.0, 10.0
# Of the job's last words. Where sizes don't fit MPICH ends a rank at once, whatever is to be done
# about errors, and then nobody writes a record.
_NAMED_BY_MPICH = r"Abort\(\d+\) on node {rank} \(.*(.|\n)*Message truncated"
_NAMED_BY_OTHERS = r"rank {rank} on {host} [^;]*(never|left out|came elsewhere)\b"
_NAMED_BY_OTHERS += r"|rank {rank} never [^;]*; its process \d+ on {host} "  # it wrote no record
_NAMED = {
    "raise": r"error on rank {rank} of \d+ on {host}: ValueError: a bug",
    "leave_out": rf"{_NAMED_BY_OTHERS}|{_NAMED_BY_MPICH}",
    "kill": r"rank {rank} (on {host} \(process \d+\) ended first|\(process \d+ on this node\) di)",
}
_MARK = "DIST_ML_FAILURE"  # in the environment of all processes of a job
_KEPT = 2000  # characters of what a job said


@dataclass(frozen=True)
class FailuresBench:
    """What goes wrong where; all products are started, one after the other."""

    faults: tuple[str, ...]
    mpis: tuple[str, ...]
    exchanges: tuple[str, ...]
    ranks: int  # of which the last goes wrong
    step_limit_seconds: float  # the watchdog's
    overrides: tuple[str, ...]  # of `dist-ml train`: what is trained
    time_limit_seconds: float  # of one job

    def __post_init__(self) -> None:
        for name in self.faults:
            require_one_of("faults", name, FAULTS)
        for name in self.exchanges:
            require_one_of("exchanges", name, EXCHANGES)
        if self.ranks < 3:
            raise ConfigError(f"ranks={self.ranks} must be 3 or more: of two, which one is wrong?")
        if not 0 < self.step_limit_seconds < self.time_limit_seconds:
            raise ConfigError(
                f"step_limit_seconds={self.step_limit_seconds:g} must be above 0, and below "
                f"time_limit_seconds={self.time_limit_seconds:g}"
            )


class Case(NamedTuple):
    """One job."""

    exchange: str
    fault: str
    mpi: str


@dataclass(frozen=True)
class Ended:
    """How a job ended. None: can't be told, or isn't asked for."""

    case: Case
    seconds: float  # from the fault to the end, its clean-up included
    in_time: bool  # not by the time limit
    named: bool  # the rank, once
    diagnosed: bool | None  # rank and call, by its flight records
    torch_agrees: bool | None
    left: int  # processes, and segments of shared memory

    @property
    def is_well(self) -> bool:
        judged = self.diagnosed is not False and self.torch_agrees is not False
        return self.in_time and self.named and judged and self.left == 0


def run(config: FailuresBench, worlds: Worlds) -> Result:
    if isinstance(worlds, ThisWorld):
        raise ConfigError("bench failures starts jobs that fail; run it without mpiexec")
    ended = []
    for case in product(config.exchanges, config.faults, config.mpis):
        with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as name:
            each, said = run_job(config, Case(*case), Path(name))
        if not each.is_well:
            log.warning("%s\nIt said:\n%s", each, said[-_KEPT:])
        ended.append(each)
    return Result("failures", [record(each) for each in ended], checks(ended, config))


def run_job(config: FailuresBench, case: Case, folder: Path) -> tuple[Ended, str]:
    """One job, into `folder/run`: how it ended, and what it said on stderr."""
    settings = [each.format(ranks=config.ranks) for each in EXCHANGES[case.exchange].overrides]
    settings += [*config.overrides, f"fault.watchdog_seconds={config.step_limit_seconds}"]
    program = [sys.executable, "-m", "dist_ml.bench.faults", case.fault, case.exchange, str(folder)]
    mark, segments = uuid.uuid4().hex, {*shared_memory.orphans()}
    done = mpiexec.run(
        [*program, *settings],
        config.ranks,
        case.mpi,
        time_limit_seconds=config.time_limit_seconds,
        capture=True,
        environment={"OMP_NUM_THREADS": "1", _MARK: mark},
    )
    seconds = time.time() - _failed_at(folder, case, done)
    left = len(process.marked(f"{_MARK}={mark}"))
    left += len({*shared_memory.orphans()} - segments)
    rank = config.ranks - 1
    named, judged = is_named(done, case.fault, rank), judge(folder, case, done, rank)
    return Ended(case, seconds, not done.timed_out, named, *judged, left), done.stderr


def _failed_at(folder: Path, case: Case, done: Completed) -> float:
    try:
        return float((folder / FAILED_AT).read_text())
    except (OSError, ValueError) as error:
        raise MachineError(
            f"{case} ended before anything went wrong, with status "
            f"{done.returncode}:\n{done.stderr[-_KEPT:]}"
        ) from error


def is_named(done: Completed, fault: str, rank: int) -> bool:
    """Does the job name the rank, and nobody a second time?"""
    host = re.escape(socket.gethostname())
    pattern = _NAMED.get(fault, _NAMED_BY_OTHERS).format(rank=rank, host=host)
    named = re.search(pattern, done.stderr) is not None
    return named and done.stderr.count("error on rank") <= 1 and done.returncode != 0


def judge(folder: Path, case: Case, done: Completed, rank: int) -> tuple[bool | None, bool | None]:
    """Do the flight records tell that `rank` went wrong, and in which call? Does torch's analyser
    read the same in them, where it blames anybody? None where the launcher or MPI ended the job
    before anybody wrote one.
    """
    flights = record_file.read_folder(folder / RUN / "log")
    if not flights:
        at_once = case.fault == "kill" or re.search(_NAMED_BY_MPICH.format(rank=rank), done.stderr)
        return (None if at_once else False), None
    finding = diagnose(flights)
    call = re.search(EXCHANGES[case.exchange].waits, finding.words)
    diagnosed = finding.ranks == (rank,) and call is not None
    torch_export.export(flights, folder / "traces")
    try:
        blamed = torch_analyser.blamed(folder / "traces")
    except DistMLError:
        return diagnosed, None
    # Where calls differ it takes the first file that it finds for right. It names every call that
    # lacks a rank, and follows no chain of messages to its end.
    others = {*range(next(iter(flights.values())).size)} - {rank}
    agrees = any(blame.ranks in ({rank}, others) for blame in blamed)
    return diagnosed, agrees if blamed else None


def record(ended: Ended) -> Record:
    def word(told: bool | None) -> str | None:
        return None if told is None else "yes" if told else "NO"

    return {
        **ended.case._asdict(),
        "seconds": ended.seconds,
        "named": word(ended.named),
        "diagnosed": word(ended.diagnosed),
        "torch agrees": word(ended.torch_agrees),
        "left": ended.left,
    }


def checks(ended: Sequence[Ended], config: FailuresBench) -> list[Check]:
    """Soon, by name, and without a trace."""
    counts: dict[str, list[bool] | list[int]] = {
        "jobs that ended by their time limit": [not each.in_time for each in ended],
        "jobs that don't name the rank, once": [not each.named for each in ended],
        "jobs whose records don't tell rank and call": [e.diagnosed is False for e in ended],
        "jobs whose records torch reads otherwise": [e.torch_agrees is False for e in ended],
        "processes and segments left": [each.left for each in ended],
    }
    made = [Check(name, float(sum(found)), 0, "lower") for name, found in counts.items()]
    soon = [each.seconds for each in ended if each.case.fault in _AT_ONCE]
    later = [each.seconds for each in ended if each.case.fault not in _AT_ONCE]
    if soon:
        name = "seconds to the end, raise or kill"
        made.append(Check(name, most(soon), _MOST_SECONDS, "lower"))
    if later:
        name = "seconds to the end, beyond the watchdog's limit"
        beyond = most(later) - config.step_limit_seconds
        made.append(Check(name, beyond, _MOST_BEYOND_LIMIT, "lower"))
    return made


BENCH = Bench("how jobs end when one of their ranks goes wrong", FailuresBench, run, {}, 3)
