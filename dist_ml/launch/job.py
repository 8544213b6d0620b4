"""Run command lines side by side under one time limit, and leave no process behind.

A job is what one `mpiexec` starts, or a group of programs that find each other by themselves. Every
process of a job carries a mark in its environment, so that those which left their session or lost
their parent are found at the end all the same.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.launch import lead, stacks
from dist_ml.launch.first_death import FirstDeath
from dist_ml.launch.process import (
    ask_to_stop,
    end_job,
    end_with_parent,
    passed_on,
    signals_wait,
    sigterm_raises,
)
from dist_ml.launch.shared_memory import remove_orphans

JOB_MARK = "DIST_ML_JOB"  # the variable that every process of a job carries
TIMED_OUT = 124  # the exit status that timeout(1) gives too
_STACKS_SECONDS = 1.0  # for the ranks to write where they stand, once the time is up
_POLITE_SECONDS_AT_ONCE = 1.0  # for mpiexec to end its ranks then, or at a second signal
_POLITE_SECONDS = 5.0
_FAILURE_SECONDS = 5.0  # what the others may go on for after one has failed
_POLL_SECONDS = 0.01
_ENDING = "Ending the job: its ranks have {:g} s to save; a second signal ends them at once.\n"


@dataclass(frozen=True)
class Command:
    """A command line with the whole environment that it gets."""

    argv: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Completed:
    """How a command ended. `stdout` and `stderr` are empty unless captured; `stacks` is every
    rank's when the time was up.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    stacks: str


def run_all(
    commands: Sequence[Command], *, time_limit_seconds: float | None, capture: bool
) -> list[Completed]:
    """Run `commands` at the same time and wait for their ends; when it returns or raises, no
    process of the job is left.

    At the time limit the stacks of all ranks that called `stacks.arm` are collected (and written to
    stderr unless captured) and what still runs is ended with status 124. When one command fails the
    others are ended some seconds later; a rank that a signal killed is named on stderr.

    SIGINT and SIGTERM end the job, then raise KeyboardInterrupt or SystemExit: ranks are sent
    SIGTERM, and have `DIST_ML_LEAD_SECONDS`, 30 s at least; a second such signal ends them at once.
    SIGUSR1 is passed on, which asks a run to save and stop.
    """
    seconds_to_end = lead.seconds_to_stop()
    mark = uuid.uuid4().hex
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="dist_ml-") as path, _signals_heeded(processes):
        folder = Path(path)
        extra = {JOB_MARK: mark, **_limit_variables(time_limit_seconds, path)}
        remove_orphans()  # of a launcher that was killed before it could
        timed_out, is_told_to_end = False, True
        first_death = FirstDeath(f"{JOB_MARK}={mark}")
        try:
            for index, command in enumerate(commands):
                processes.append(_start(command, extra, folder / f"{index}", capture))
            timed_out = _wait(processes, time_limit_seconds)
            late = [timed_out and process.poll() is None for process in processes]
            timed_out = any(late)
            standing = _collect_stacks(folder) if timed_out else ""
            is_told_to_end = False
        finally:
            with signals_wait() as further:
                first_death.close()
                if is_told_to_end:
                    sys.stderr.write("" if capture else _ENDING.format(seconds_to_end))
                    ask_to_stop(processes, f"{JOB_MARK}={mark}", seconds_to_end, further)
                _end(processes, mark, timed_out or bool(further))
        dead = "" if timed_out else _first_death(first_death, processes)
        told = _limit_in_words(time_limit_seconds, standing) if timed_out else dead
        sys.stderr.write("" if capture else told)
        return _completed(folder, processes, late, dead if capture else "", standing)


def _completed(
    folder: Path,
    processes: Sequence[subprocess.Popen[bytes]],
    late: Sequence[bool],
    dead: str,
    standing: str,
) -> list[Completed]:
    """How the commands ended; who died first is told with the first one's."""
    return [
        Completed(
            TIMED_OUT if late[index] else _exit_status(process.returncode),
            _text(folder / f"{index}.stdout"),
            _text(folder / f"{index}.stderr") + (dead if index == 0 else ""),
            any(late),
            standing,
        )
        for index, process in enumerate(processes)
    ]


@contextlib.contextmanager
def _signals_heeded(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    with sigterm_raises(), passed_on(signal.SIGUSR1, processes):
        yield


def _limit_variables(seconds: float | None, folder: str) -> dict[str, str]:
    """What tells ranks by when, and to where, they write their stacks."""
    if seconds is None:
        return {}
    deadline = str(time.monotonic() + seconds)
    return {stacks.TIME_LIMIT: str(seconds), stacks.FOLDER: folder, stacks.DEADLINE: deadline}


def _start(
    command: Command, extra: Mapping[str, str], stem: Path, capture: bool
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own. Captured output goes to files: a pipe would wait for every
    straggler's end.
    """
    with (
        stem.with_suffix(".stdout").open("wb") as stdout,
        stem.with_suffix(".stderr").open("wb") as stderr,
    ):
        return subprocess.Popen(
            command.argv,
            env={**command.environment, **extra},
            stdin=subprocess.DEVNULL if capture else None,
            stdout=stdout if capture else None,
            stderr=stderr if capture else None,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], limit_seconds: float | None) -> bool:
    """Wait until all have ended, or the first failure is some seconds old; True when the limit came
    first.
    """
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    failed_at = None
    while None in [process.poll() for process in processes]:  # all are asked, each time
        now = time.monotonic()
        if deadline is not None and now > deadline:
            return True
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = now
        if failed_at is not None and now > failed_at + _FAILURE_SECONDS:
            return False
        time.sleep(_POLL_SECONDS)
    return False


def _collect_stacks(folder: Path) -> str:
    deadline = time.monotonic() + _STACKS_SECONDS
    while stacks.pending(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return stacks.collect(folder)


def _end(processes: Sequence[subprocess.Popen[bytes]], mark: str, at_once: bool) -> None:
    """Leave nothing of the job, nor any memory that failing ranks shared."""
    polite = _POLITE_SECONDS_AT_ONCE if at_once else _POLITE_SECONDS
    end_job(processes, f"{JOB_MARK}={mark}", polite)
    remove_orphans(wait=True)  # a job may have gone on without a rank that was killed


def _limit_in_words(seconds: float | None, standing: str) -> str:
    return f"The time limit of {seconds:g} s is up; the job was ended.\n{standing}"


def _first_death(watch: FirstDeath, processes: Sequence[subprocess.Popen[bytes]]) -> str:
    told = (watch.in_words(_exit_status(process.returncode)) for process in processes)
    return next(filter(None, told), "")


def _exit_status(returncode: int) -> int:
    """As a shell gives it: 128 + n for a command that signal n ended."""
    return returncode if returncode >= 0 else 128 - returncode


def _text(file: Path) -> str:
    return file.read_text(errors="replace")
