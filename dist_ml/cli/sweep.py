"""`dist-ml train --multirun`: one MPI job for each point of a sweep, one after the other, so that
ranks can be swept too.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.cli import compose, terminal
from dist_ml.cli.arguments import Request
from dist_ml.cli.composed_point import composed_point, refuse_ranks
from dist_ml.config.convert import to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.experiment.training_job import TrainingJob, folder_name, start

if TYPE_CHECKING:
    from dist_ml.train.stored_run import StoredRun


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
    refuse_ranks("--multirun")
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
            config = composed_point(request, overrides)
        except DistMLError as error:
            raise ConfigError(
                f"point {number} of the sweep ({' '.join(overrides)}): {error}"
            ) from error
        root = root or Path("multirun", config.name, time.strftime("%Y-%m-%d_%H-%M-%S"))
        name = folder_name(number, [overrides[index] for index in varied])
        points.append(Point(number, overrides, config, root / name))
    return points


def _run_point(request: Request, point: Point, count: int) -> bool:
    terminal.say(
        f"\nrun {point.number} of {count} on {point.ranks} rank{'s' if point.ranks > 1 else ''}: "
        f"{' '.join(point.overrides)}"
    )
    job = TrainingJob(
        request.config_name,
        request.config_dir,
        point.overrides,
        point.folder,
        point.ranks,
        request.debug,
    )
    status = start(job).returncode
    if status != 0:
        terminal.complain(f"run {point.number} failed with status {status}; going on")
    return status == 0


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
