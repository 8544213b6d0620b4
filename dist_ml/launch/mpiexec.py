"""Start a program on P ranks with `mpiexec`, under a time limit, leaving no process behind.

`command` says what to run, as a value; `run` runs it. The two MPIs differ in what they need: Open MPI refuses root and more ranks
than cores unless told, and binds ranks to cores; both spin while they wait, which is ruinous when ranks outnumber cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.launch import mpi_installation, stacks
from dist_ml.launch.mpi_installation import MpiInstallation
from dist_ml.launch.process import end_job, end_with_parent, sigterm_raises

TIMED_OUT = 124  # the exit status that timeout(1) gives too
_GRACE_SECONDS = 10.0  # a rank's timer starts when it has started, which may be that much after its launch
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Completed:
    """How a launch ended. `stdout` and `stderr` are empty unless captured; `stacks` is every rank's when the time was up."""

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    stacks: str


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(program: Sequence[str], ranks: int, mpi: MpiInstallation) -> tuple[list[str], dict[str, str]]:
    """The command line that starts `program` on `ranks` ranks of this machine, and the variables it wants by default.

    Threads per rank are the cores divided by the ranks.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    argv = [str(mpi.mpiexec), "-n", str(ranks)]
    crowded = ranks > cores()
    if mpi.flavour == "openmpi":
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        environment |= {"OMPI_MCA_osc": "^ucx"}  # else its wheel complains of UCX at every shared window
        if mpi.origin == "wheel" or crowded:
            argv += ["--oversubscribe", "--bind-to", "none"]
        if crowded:
            environment["OMPI_MCA_mpi_yield_when_idle"] = "1"
    elif mpi.flavour == "mpich" and crowded:
        environment["MPIR_CVAR_POLLS_BEFORE_YIELD"] = "1"
    return [*argv, *program], environment


def run(
    program: Sequence[str],
    ranks: int,
    mpi: MpiInstallation | str | None = None,
    *,
    time_limit_seconds: float | None = None,
    capture: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Completed:
    """Run `program` on `ranks` ranks and wait for its end; when it returns or raises, no process of the job is left.

    At the time limit the stacks of every rank that called `stacks.arm` are collected (and written to stderr unless captured)
    and the job is ended with status 124. SIGINT and SIGTERM end the job, then raise KeyboardInterrupt or SystemExit.
    What the user's own environment sets wins over the defaults of `command`; `environment` wins over both.
    """
    if not isinstance(mpi, MpiInstallation):
        mpi = mpi_installation.find(mpi)
    argv, defaults = command(program, ranks, mpi)
    chosen = {**defaults, **os.environ, "DIST_ML_MPI": mpi.name, **_terminal(capture), **(environment or {})}
    return run_command(argv, chosen, time_limit_seconds=time_limit_seconds, capture=capture)


def run_command(
    argv: Sequence[str], environment: Mapping[str, str], *, time_limit_seconds: float | None, capture: bool
) -> Completed:
    """`run` for any command line that starts ranks."""
    name, value = "DIST_ML_JOB", uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="dist_ml-") as path, sigterm_raises():
        folder = Path(path)
        variables = {**environment, name: value}
        if time_limit_seconds is not None:
            variables |= {stacks.TIME_LIMIT: str(time_limit_seconds), stacks.FOLDER: path}
        process = _start(argv, variables, folder, capture)
        try:
            timed_out = _outlives(process, time_limit_seconds)
            standing = _collect_stacks(folder) if timed_out else ""
        finally:
            end_job(process, f"{name}={value}")
        if timed_out and not capture:
            sys.stderr.write(f"The time limit of {time_limit_seconds:g} s is up; the job was ended.\n{standing}")
        status = TIMED_OUT if timed_out else _exit_status(process.returncode)
        return Completed(status, _text(folder / "stdout"), _text(folder / "stderr"), timed_out, standing)


def _start(argv: Sequence[str], environment: Mapping[str, str], folder: Path, capture: bool) -> subprocess.Popen[bytes]:
    """Start the launcher in a session of its own. Captured output goes to files: a pipe would wait for every straggler's end."""
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL if capture else None,
            stdout=stdout if capture else None,
            stderr=stderr if capture else None,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )


def _outlives(process: subprocess.Popen[bytes], limit_seconds: float | None) -> bool:
    """Wait for the end of `process`; True when it still runs at the limit."""
    try:
        process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _collect_stacks(folder: Path) -> str:
    deadline = time.monotonic() + _GRACE_SECONDS
    while stacks.pending(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return stacks.collect(folder)


def _terminal(capture: bool) -> dict[str, str]:
    """What rank 0 can't see through mpiexec's pipe: that its output ends in a terminal, and how wide that is."""
    if capture or not sys.stdout.isatty():
        return {}
    size = shutil.get_terminal_size()
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}


def _exit_status(returncode: int) -> int:
    """As a shell gives it: 128 + n for a launcher that signal n ended."""
    return returncode if returncode >= 0 else 128 - returncode


def _text(file: Path) -> str:
    return file.read_text(errors="replace")
