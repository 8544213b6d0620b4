"""An experiment that is run: its jobs, what is said of each, and the report."""

import json
import shlex
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from dist_ml.cli import terminal
from dist_ml.cli.arguments import Request
from dist_ml.cli.tables import print_table
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import DataError
from dist_ml.experiment import tables
from dist_ml.experiment.allocation_jobs import run_in_allocation
from dist_ml.experiment.folder import ExperimentFolder, Run
from dist_ml.experiment.local_jobs import Outcome, run_locally
from dist_ml.experiment.measurements import measure
from dist_ml.experiment.points import Point
from dist_ml.experiment.report import Report, report
from dist_ml.experiment.slurm_jobs import run_on_slurm
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch.extras import install_command
from dist_ml.launch.process import sigterm_raises
from dist_ml.train.display.words import describe
from dist_ml.train.run_folder import jsonable, write_whole

_START = {
    "local": run_locally,
    "emulated": run_locally,
    "slurm": run_on_slurm,
    "allocation": run_in_allocation,
}


class ExperimentRun:
    """What is left of an experiment, run and reported."""

    def __init__(self, request: Request, config: ExperimentConfig, points: Sequence[Point]) -> None:
        self._request = request
        self._config = config
        self._points = points

    def run(self) -> int:
        """All runs that are not finished yet, then the report; 1 when any failed."""
        with sigterm_raises(), ExperimentFolder(self._config) as folder:
            runs = folder.runs(self._points)
            left = folder.unfinished(self._points)
            terminal.say(
                f"experiment in {folder.path}: {len(runs) - len(left)} of {len(runs)} runs are "
                "finished"
            )
            try:
                with closing(self._outcomes(folder, left)) as outcomes:
                    for outcome in outcomes:
                        _end(outcome)
            except (KeyboardInterrupt, SystemExit):
                terminal.complain(f"\nstopped; to go on: {self._command()}")
                raise
            made = report(self._config, measure(self._points, runs))
            _write(made, folder.path)
            _show(made, folder.path)
            if made["failures"]:
                terminal.complain(
                    f"{len(made['failures'])} of {len(runs)} runs failed; to run them again: "
                    f"{self._command()}"
                )
            return 1 if made["failures"] else 0

    def _outcomes(
        self, folder: ExperimentFolder, runs: Sequence[Run]
    ) -> Generator[Outcome, None, None]:
        def job_of(run: Run) -> TrainingJob:
            folder.set_aside(run)
            return TrainingJob(
                self._config.base.removesuffix(".yaml"),
                self._request.config_dir,
                run.point.overrides,
                run.folder,
                run.point.ranks,
                self._request.debug,
            )

        return _START[self._config.where](self._config, runs, job_of, terminal.say)

    def _command(self) -> str:
        """What goes on with this experiment: the command as it was typed, and its folder."""
        kept = [each for each in self._request.overrides if not each.startswith("folder=")]
        own = [f"--config-dir={self._request.config_dir}"] if self._request.config_dir else []
        name = self._request.config_name.rpartition("/")[2]
        words = ["experiment", name, *own, *kept, f"folder={self._config.folder}"]
        return f"dist-ml {shlex.join(words)}"


def _end(outcome: Outcome) -> None:
    """Say how a run ended, and keep it where it failed."""
    stored = outcome.run.stored() if outcome.run.folder.is_dir() else None
    if outcome.status == 0 and stored is not None and stored.status == "finished":
        known = {k: v for k, v in stored.summary.items() if isinstance(v, (int, float))}
        terminal.say(f"    {known.get('seconds', 0.0):.1f} s  {'  '.join(describe(known))}")
        return
    said = [line for line in outcome.output.splitlines() if line.startswith("error")]
    wrote = stored.problem if stored is not None and stored.status == "failed" else ""
    last = outcome.output.strip().rpartition("\n")[2]
    problem = outcome.problem or "".join(said[:1]) or wrote or last or "it left no summary"
    outcome.run.record_failure(outcome.status, problem, outcome.output)
    terminal.complain(f"    failed with status {outcome.status}: {problem}; going on")


def _write(made: Report, folder: Path) -> None:
    """report.json, the plots and report.md."""
    plots, without = _plots(made, folder)
    try:
        write_whole(folder / "report.json", json.dumps(jsonable(made), indent=2) + "\n")
        text = tables.markdown(made, [file.name for file in plots], without)
        write_whole(folder / "report.md", text)
    except OSError as error:
        raise DataError(
            f"the report in {folder} can't be written: {error.strerror or error}; make room there"
        ) from error


def _plots(made: Report, folder: Path) -> tuple[list[Path], str]:
    """The pictures' files; or none, and how to get them."""
    try:
        from dist_ml.experiment import plots
    except ImportError:
        return (
            [],
            f"No plots: they need matplotlib; run `{install_command('plot')}`, then the "
            "same command again.",
        )
    return plots.draw(made, folder), ""


def _show(made: Report, folder: Path) -> None:
    console = Console(highlight=False, markup=False)
    for table in (tables.points_table(made), tables.fits_table(made)):
        if table.rows:
            terminal.say("")
            print_table(console, table.headers, table.rows, table.numeric)
    terminal.say("\n".join(["", *tables.conclusions(made), *made["notes"]]).rstrip())
    terminal.say(f"report      {folder / 'report.md'}")
