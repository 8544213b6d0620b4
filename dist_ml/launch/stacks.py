"""Where every rank stands when the time is up.

A hang is only understood from the stacks of all ranks, so each rank arms a timer of its own when it
starts. The timer is a thread of the interpreter's C code: it fires inside a blocking MPI call too.
"""

import faulthandler
import os
import time
from collections.abc import Mapping
from pathlib import Path

TIME_LIMIT = "DIST_ML_TIME_LIMIT_SECONDS"
DEADLINE = "DIST_ML_DEADLINE"  # the same end on time.monotonic(), which a machine's processes share
FOLDER = "DIST_ML_STACKS_FOLDER"
_RANK_VARIABLES = (
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
    "RANK",
)  # RANK: torch.distributed's


def arm(later_seconds: float = 0.0, stderr: int = 2) -> None:
    """Write this rank's stacks when `DIST_ML_TIME_LIMIT_SECONDS`, and `later_seconds` more, have
    passed; without that variable, do nothing.

    `DIST_ML_DEADLINE` makes it exact: the time that this process took to start counts.
    With `DIST_ML_STACKS_FOLDER` they go to `rank-<k>.stack` there and the process goes on: whoever
    set the folder collects the files of all ranks and ends the job. Without it they go to the
    descriptor `stderr` and the process exits with status 1.
    """
    limit = os.environ.get(TIME_LIMIT)
    if not limit:
        return
    seconds = float(limit) + later_seconds
    if DEADLINE in os.environ:
        seconds = max(0.01, float(os.environ[DEADLINE]) - time.monotonic())
    folder = os.environ.get(FOLDER)
    if folder is None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
        return
    # An open descriptor instead of a file object: it must outlive every frame, and nobody closes it
    # before the process ends.
    descriptor = os.open(
        Path(folder, f"rank-{rank(os.environ)}.stack"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
    )
    faulthandler.dump_traceback_later(seconds, exit=False, file=descriptor)


def rank(environment: Mapping[str, str]) -> int:
    """This process's rank by its launcher's variables, without MPI; 0 when none is set."""
    for variable in _RANK_VARIABLES:
        if environment.get(variable, "").isdigit():
            return int(environment[variable])
    return 0


def has_rank(environment: Mapping[str, str]) -> bool:
    """Did a launcher number this process?"""
    return any(environment.get(variable, "").isdigit() for variable in _RANK_VARIABLES)


def collect(folder: Path) -> str:
    """All ranks' stacks that were written to `folder`, each under a line that names the rank."""
    parts = []
    for file in sorted(
        folder.glob("rank-*.stack"), key=lambda file: int(file.stem.removeprefix("rank-"))
    ):
        text = file.read_text(errors="replace").strip() or "(no stack: it had ended)"
        parts.append(f"--- rank {file.stem.removeprefix('rank-')} stood here\n{text}\n")
    return "".join(parts)


def pending(folder: Path) -> bool:
    """Whether some rank is armed and has not written its stacks yet."""
    return any(file.stat().st_size == 0 for file in folder.glob("rank-*.stack"))
