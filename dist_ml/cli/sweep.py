"""`dist-ml train --multirun`: one MPI job for each point of a sweep, one after the other, so that
ranks can be swept too.
"""

from typing import TYPE_CHECKING

from dist_ml.cli import terminal
from dist_ml.cli.arguments import Request
from dist_ml.cli.composed_point import refuse_ranks
from dist_ml.cli.sweep_points import Point, plan
from dist_ml.config.convert import to_mapping
from dist_ml.experiment.training_job import start

if TYPE_CHECKING:
    from dist_ml.train.stored_run import StoredRun


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


def _run_point(request: Request, point: Point, count: int) -> bool:
    terminal.say(
        f"\nrun {point.number} of {count} on {point.ranks} rank{'s' if point.ranks > 1 else ''}: "
        f"{' '.join(point.overrides)}"
    )
    status = start(point.job(request)).returncode
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
