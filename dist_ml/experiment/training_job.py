"""One `dist-ml train`, as its command line and as an MPI job on this machine: what a sweep and an
experiment start for each of their points.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.experiment.axes import quoted
from dist_ml.launch import mpi_installation, mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.launch.job import Command, Completed, run_all

_LONGEST_NAME = 80


@dataclass(frozen=True)
class TrainingJob:
    """A run that can be started."""

    config_name: str
    config_dir: Path | None
    overrides: tuple[str, ...]
    folder: Path | None  # of the run; None: as the overrides have it, or the configuration
    ranks: int
    debug: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of `dist-ml train`, but for the name of its configuration."""
        flags = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        flags += ["--debug"] if self.debug else []
        folder = [] if self.folder is None else [f"folder={quoted(str(self.folder))}"]
        return [*flags, *self.overrides, *folder]

    @property
    def program(self) -> list[str]:
        """The command line of each rank."""
        train = [sys.executable, "-m", "dist_ml", "train", f"--config-name={self.config_name}"]
        return [*train, *self.arguments]


def start(
    job: TrainingJob,
    *,
    mpi: str | None = None,
    time_limit_seconds: float | None = None,
    capture: bool = False,
    environment: Mapping[str, str] | None = None,
    network: EmulatedNetwork | None = None,
) -> Completed:
    """Run the job to its end on this machine, as `mpiexec.run` does. One rank needs no MPI, unless
    one is there.
    """
    if job.ranks == 1 and network is None and mpi is None and not mpi_installation.available():
        alone = Command(job.program, {**os.environ, **(environment or {})})
        return run_all([alone], time_limit_seconds=time_limit_seconds, capture=capture)[0]
    return mpiexec.run(
        job.program,
        job.ranks,
        mpi,
        time_limit_seconds=time_limit_seconds,
        capture=capture,
        environment=environment,
        network=network,
    )


def folder_name(number: int, varied: Sequence[str]) -> str:
    """`3_ranks=2,optimizer.lr=0.1`, with nothing in it that a shell or a file system minds."""
    name = re.sub(r"[^\w.,=+-]+", "-", ",".join(varied)).strip("-")
    return f"{number}_{name}"[:_LONGEST_NAME] if name else str(number)
