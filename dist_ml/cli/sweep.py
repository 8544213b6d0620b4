"""`dist-ml train --multirun`: one MPI job for each point of a sweep, one after the other, so that
ranks can be swept too.
"""

import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.cli import compose, terminal
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.launch import mpi_installation, mpiexec

if TYPE_CHECKING:
    from dist_ml.train.stored_run import StoredRun

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Point:
    """One run of the sweep."""

    number: int  # from 1, in what is said and in the folder's name
    overrides: tuple[str, ...]
    config: TrainConfig
    folder: Path

    @property
    def ranks(self) -> int:
        return self.config.ranks or 1


def run(request: Request) -> int:
    """Run all points; 1 when any failed, after the others have run."""
    from dist_ml.comm import mpi

    if mpi.launched():
        raise ConfigError(
            "--multirun starts an MPI job for each point, so it can't run inside one; start it "
            "without mpiexec or srun"
        )
    points = plan(request)
    failed = [point for point in points if not _run_point(request, point, len(points))]
    _report(points)
    if failed:
        terminal.complain(
            f"{len(failed)} of {len(points)} runs failed: "
            f"{', '.join(point.folder.name for point in failed)}"
        )
    return 1 if failed else 0


def plan(request: Request) -> list[Point]:
    """All points, each composed and converted once, so that a sweep with a mistake in it stops
    before it starts.
    """
    swept = compose.sweep_points(request)
    varied = (
        [
            index
            for index in range(len(swept[0]))
            if len({overrides[index] for overrides in swept}) > 1
        ]
        if swept
        else []
    )
    points: list[Point] = []
    root: Path | None = None
    for number, overrides in enumerate(swept, 1):
        try:
            config = from_mapping(
                TrainConfig, compose.composed(replace(request, overrides=overrides, multirun=False))
            )
        except DistMLError as error:
            raise ConfigError(
                f"point {number} of the sweep ({' '.join(overrides)}): {error}"
            ) from error
        root = root or Path("multirun", config.name, time.strftime("%Y-%m-%d_%H-%M-%S"))
        points.append(
            Point(
                number,
                overrides,
                config,
                root / _folder_name(number, [overrides[index] for index in varied]),
            )
        )
    return points


def _folder_name(number: int, varied: list[str]) -> str:
    """`3_ranks=2,optimizer.lr=0.1`, with nothing in it that a shell or a file system minds."""
    name = re.sub(r"[^\w.,=+-]+", "-", ",".join(varied)).strip("-")
    return f"{number}_{name}"[:_LONGEST_NAME] if name else str(number)


def _run_point(request: Request, point: Point, count: int) -> bool:
    terminal.say(
        f"\nrun {point.number} of {count} on {point.ranks} rank{'s' if point.ranks > 1 else ''}: "
        f"{' '.join(point.overrides)}"
    )
    program = [sys.executable, "-m", "dist_ml", "train", f"--config-name={request.config_name}"]
    program += [f"--config-dir={request.config_dir}"] if request.config_dir else []
    program += ["--debug"] if request.debug else []
    program += [*point.overrides, f"folder='{point.folder}'"]
    status = _status(program, point.ranks)
    if status != 0:
        terminal.complain(f"run {point.number} failed with status {status}; going on")
    return status == 0


def _status(program: list[str], ranks: int) -> int:
    """One rank needs no MPI, unless one is there."""
    mpi = next(iter(mpi_installation.available()), None)
    if mpi is None and ranks == 1:
        import subprocess

        return subprocess.run(program).returncode
    return mpiexec.run(program, ranks).returncode


def _report(points: list[Point]) -> None:
    """A table of all points, also of those that failed before they had a folder."""
    from dist_ml.cli import comparison, report

    terminal.say("")
    terminal.say(report.table(comparison.compare([_stored(point) for point in points])))


def _stored(point: Point) -> "StoredRun":
    from dist_ml.train import run_folder, stored_run

    if run_folder.RunFolder(point.folder).config.exists():
        return stored_run.read(point.folder)
    config = {**to_mapping(point.config), "folder": str(point.folder)}
    return stored_run.StoredRun(
        point.folder, "failed", "it failed before its folder was made; see above", config
    )
