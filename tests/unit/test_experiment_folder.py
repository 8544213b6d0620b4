"""What an experiment finds in its folder: what is finished, what runs again, what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dist_ml.experiment
from dist_ml.cli import arguments, experiment_run, terminal
from dist_ml.cli.experiment_run import ExperimentRun
from dist_ml.errors import ConfigError, DataError
from dist_ml.experiment import folder as folders
from dist_ml.experiment import local_jobs
from dist_ml.experiment.folder import ExperimentFolder, Run
from dist_ml.experiment.local_jobs import run_locally
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch.job import Completed
from dist_ml.train import logs
from tests.experiments import config_of, finish, point_of

POINTS = [point_of(1, 1), point_of(2, 2)]


def opened(path: Path, **changed: Any) -> ExperimentFolder:
    return ExperimentFolder(config_of(folder=str(path), **changed))


def left(path: Path, **changed: Any) -> list[str]:
    """The runs that an experiment would start, without the folder that all have in common."""
    with opened(path, **changed) as folder:
        runs = folder.unfinished(POINTS)
        return [str(run.folder.relative_to(path)) for run in runs]


def run_of(path: Path, number: int = 1, repetition: int = 1) -> Run:
    return opened(path).run(POINTS[number - 1], repetition)


def test_all_points_run_in_turn_and_back(tmp_path: Path) -> None:
    assert left(tmp_path, repetitions=3) == [
        "1_ranks=1/1", "2_ranks=2/1", "2_ranks=2/2", "1_ranks=1/2", "1_ranks=1/3", "2_ranks=2/3"
    ]  # fmt: skip
    stored = yaml.safe_load((tmp_path / "experiment.yaml").read_text())
    assert (stored["repetitions"], stored["axes"]) == (3, {"ranks": [1, 2]})


def test_what_is_finished_does_not_run_again(tmp_path: Path) -> None:
    finish(run_of(tmp_path / "e"))
    with pytest.raises(ConfigError, match=r"holds 1_ranks=1 and is no experiment's"):
        left(tmp_path / "e")
    assert left(tmp_path / "f") == ["1_ranks=1/1", "2_ranks=2/1"]
    finish(run_of(tmp_path / "f"))
    assert left(tmp_path / "f") == ["2_ranks=2/1"]
    assert left(tmp_path / "f", repetitions=2) == ["2_ranks=2/1", "2_ranks=2/2", "1_ranks=1/2"]


@pytest.mark.parametrize("kind", ["failed", "broken off", "no summary that can be read", "job"])
def test_what_did_not_end_well_runs_again(kind: str, tmp_path: Path) -> None:
    left(tmp_path)
    run = run_of(tmp_path)
    finish(run, **({"status": "failed", "error": "nan"} if kind == "failed" else {}))
    summary = run.folder / "summary.json"
    if kind == "broken off":
        summary.unlink()
    elif kind == "no summary that can be read":
        summary.write_text("{")
    elif kind == "job":  # as where a rank dies after the summary
        run.record_failure(9, "killed", "")
    assert left(tmp_path) == ["1_ranks=1/1", "2_ranks=2/1"]
    with opened(tmp_path) as folder:
        folder.set_aside(run)
        assert not run.folder.exists()
        run.folder.mkdir()
        folder.set_aside(run)
        folder.set_aside(run)  # nothing there: nothing to do
    assert sorted(each.name for each in (tmp_path / "failed").iterdir()) == [
        "1_ranks=1,1,1",
        "1_ranks=1,1,2",
    ]


def test_a_failure_is_recorded(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.record_failure(124, "its time was up", "stacks")
    assert json.loads(run.failure.read_text()) == {
        "status": 124, "problem": "its time was up", "output": "stacks"
    }  # fmt: skip
    assert (run.stored().status, run.stored().problem) == ("failed", "its time was up")
    run.failure.write_text("{")
    assert run.stored().problem == "failure.json can't be read"


def test_a_run_that_still_lives_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path)
    run = run_of(tmp_path)
    finish(run)
    (run.folder / "summary.json").unlink()
    logs.start(run.folder, 0)
    monkeypatch.setattr(folders, "_ENDING_SECONDS", 0.1)
    monkeypatch.setattr(folders, "_POLL_SECONDS", 0.01)
    try:
        with opened(tmp_path) as folder, pytest.raises(ConfigError, match="still goes on"):
            folder.set_aside(run)
        monkeypatch.setattr(folders.time, "sleep", lambda _: logs.stop())
        with opened(tmp_path) as folder:
            folder.set_aside(run)
    finally:
        logs.stop()
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"axes": {"ranks": [1, 2, 4]}}, r"with axes.ranks=\[1, 2\], not \[1, 2, 4\]"),
        ({"axes": {"seed": [1, 2]}}, r"with axes.ranks=\[1, 2\], not null"),
        ({"fixed": {"model.hidden": [3]}}, r"with fixed.model.hidden=null, not \[3\]"),
        ({"kind": "weak"}, "with kind=strong, not weak"),
        ({"threads": 2}, "with threads=1, not 2"),
    ],
    ids=str,
)
def test_the_folder_of_another_experiment_is_refused(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    left(tmp_path)
    with pytest.raises(ConfigError, match=words):
        left(tmp_path, **changed)
    left(tmp_path, repetitions=2, time_limit_seconds=1.0)  # these may change


def test_a_run_of_a_changed_training_configuration_is_refused(tmp_path: Path) -> None:
    left(tmp_path)
    finish(opened(tmp_path).run(point_of(1, 1, seed=3), 1))
    with pytest.raises(ConfigError, match="was trained with seed=3, but the experiment has 0 now"):
        left(tmp_path)


def test_one_experiment_at_a_time(tmp_path: Path) -> None:
    second = opened(tmp_path)
    with opened(tmp_path), pytest.raises(ConfigError, match="is gone on with by another"):
        second.__enter__()
    left(tmp_path)  # free again


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\0"])
def test_an_unreadable_experiment_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(DataError, match=r"experiment.yaml can't be read"):
        left(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/e can't be written: Not a directory"):
        left(tmp_path / "file" / "e")


# --- running


class Starts:
    """In place of MPI jobs: what was started, and how each ends, by its number from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: dict[int, Any] | None = None) -> None:
        self.jobs: list[TrainingJob] = []
        self.settings: list[dict[str, Any]] = []
        self._ends = ends or {}
        monkeypatch.setattr(local_jobs, "start", self)
        monkeypatch.setattr(experiment_run, "_plots", lambda *_: ([], ""))  # which take longest

    def __call__(self, job: TrainingJob, **settings: Any) -> Completed:
        self.jobs.append(job)
        self.settings.append(settings)
        end = self._ends.get(len(self.jobs), "good")
        if isinstance(end, BaseException):
            raise end
        if end == "good":
            point = next(each for each in POINTS if each.ranks == job.ranks)
            finish(Run(point, int(job.folder.name), job.folder), test_loss=None)  # it was NaN
        said = "noise\nerror: too bad\nmore\n" if end == "error" else ""
        status = {"good": 0, "silent": 0, "error": 2, "late": 124}[end]
        return Completed(status, "", said, end == "late", "stacks" if end == "late" else "")


def experiment(path: Path, *overrides: str, **changed: Any) -> ExperimentRun:
    request = arguments.parse(overrides, "dist-ml experiment", config_name="experiment/test")
    return ExperimentRun(request, config_of(folder=str(path), **changed), POINTS)


def test_each_run_is_started_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    config = config_of(folder=str(tmp_path), threads=3, mpi="openmpi", time_limit_seconds=7)
    with ExperimentFolder(config) as folder:
        job = TrainingJob("train", None, (), run_of(tmp_path).folder, 1)
        list(run_locally(config, folder.unfinished(POINTS)[:1], lambda _: job, lambda _: None))
    assert starts.settings == [{
        "mpi": "openmpi", "time_limit_seconds": 7, "capture": True, "network": None,
        "environment": {"OMP_NUM_THREADS": "3"},
    }]  # fmt: skip


def test_an_experiment_ends_with_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = Starts(monkeypatch)
    assert experiment(tmp_path).run() == 0
    assert [(job.ranks, job.folder) for job in starts.jobs] == [
        (1, tmp_path / "1_ranks=1" / "1"), (2, tmp_path / "2_ranks=2" / "1")
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "run 1 of 2 on 1 rank: ranks=1, repetition 1" in told
    assert "10.0 s  100/s  comm 12%" in told
    made = json.loads((tmp_path / "report.json").read_text())
    assert [point["speed_up"]["median"] for point in made["points"]] == [1.0, 2.0]
    assert "| ranks |" in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path).run() == 0
    assert len(starts.jobs) == 2
    assert "2 of 2 runs are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ("error", 2, "error: too bad"),
        ("late", 124, "its time_limit_seconds=60 were up"),
        ("silent", 0, "it left no summary"),
    ],
)
def test_a_point_that_fails_is_told_and_runs_again(
    end: str,
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starts = Starts(monkeypatch, {1: end})
    assert experiment(tmp_path, "repetitions=1", "folder=old").run() == 1
    told = capsys.readouterr().err
    assert f"failed with status {status}: {words}; going on" in told
    command = f"dist-ml experiment test repetitions=1 folder={tmp_path}"
    assert f"1 of 2 runs failed; to run them again: {command}\n" in told
    (failure,) = json.loads((tmp_path / "report.json").read_text())["failures"]
    assert (failure["point"], failure["problem"]) == ("1_ranks=1", f"failed: {words}")
    assert words in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path).run() == 0
    assert [job.ranks for job in starts.jobs] == [1, 2, 1]
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=["ctrl-c", "sigterm"])
def test_stopped_half_way_it_goes_on(
    stop: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starts = Starts(monkeypatch, {2: stop})
    with pytest.raises(type(stop)):
        experiment(tmp_path).run()
    assert f"to go on: dist-ml experiment test folder={tmp_path}\n" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()
    assert experiment(tmp_path).run() == 0
    assert [job.ranks for job in starts.jobs] == [1, 2, 2]


def test_the_command_that_goes_on_can_be_typed(tmp_path: Path) -> None:
    run = experiment(tmp_path / "a b", f"--config-dir={tmp_path}", "axes={x:[1]}", "folder=old")
    assert run._command() == (
        f"dist-ml experiment test --config-dir={tmp_path} 'axes={{x:[1]}}' 'folder={tmp_path}/a b'"
    )


def test_without_matplotlib_the_report_tells_how_to_get_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dist_ml.experiment.plots", None)
    monkeypatch.delattr(dist_ml.experiment, "plots", raising=False)
    drawn, why = experiment_run._plots({}, tmp_path)
    assert drawn == []
    assert "run `" in why
    assert "pip install 'matplotlib" in why


def test_plots_are_drawn_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    draw = experiment_run._plots
    Starts(monkeypatch)
    monkeypatch.setattr(experiment_run, "_plots", draw)
    assert experiment(tmp_path).run() == 0
    text = (tmp_path / "report.md").read_text()
    for name in ("speed_up.png", "efficiency.png", "samples_per_second.png", "communication.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        assert f"![{name}]({name})" in text
    assert not (tmp_path / "bubble.png").exists()


def test_a_report_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Starts(monkeypatch)
    (tmp_path / "report.md").mkdir(parents=True)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"name": "test"}))
    monkeypatch.setattr(folders, "_differences", lambda *_: [])
    with pytest.raises(DataError, match=r"the report in .* can't be written"):
        experiment(tmp_path).run()


def test_inside_mpi_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_ml.cli import main
    from dist_ml.comm import mpi

    monkeypatch.setattr(mpi, "launched", lambda: True)
    monkeypatch.setattr(terminal, "is_speaker", lambda: True)
    assert main.main(["experiment", "strong"]) == 2
    assert "starts an MPI job for each point" in capsys.readouterr().err


def test_hosts_are_emulated_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_networks = []

    class Network:
        def __init__(self, hosts: int, rate: str | None) -> None:
            opened_networks.append((hosts, rate))

        def __enter__(self) -> "Network":
            return self

        def __exit__(self, *_: object) -> None:
            opened_networks.append("closed")

    monkeypatch.setattr(local_jobs, "EmulatedNetwork", Network)
    starts = Starts(monkeypatch)
    network = {"hosts": 2, "rate": "1gbit"}
    assert experiment(tmp_path, where="emulated", network=network).run() == 0
    assert opened_networks == [(2, "1gbit"), "closed"]
    assert all(isinstance(each["network"], Network) for each in starts.settings)
