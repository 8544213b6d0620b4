"""Jobs of Slurm, with a cluster that only answers: what is submitted, waited for, cancelled, found
again.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import MachineError
from dist_ml.experiment import slurm_jobs
from dist_ml.experiment.folder import ExperimentFolder, Run
from dist_ml.experiment.local_jobs import Outcome
from dist_ml.experiment.slurm_jobs import batch_job, job_goes_on, run_on_slurm
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch import sbatch
from tests.experiments import config_of, finish, point_of

POINTS = [point_of(1, 1), point_of(2, 2), point_of(3, 4)]
FORGOTTEN = MachineError("scontrol failed: slurm_load_jobs error: Invalid job id specified")


class Cluster:
    """Answers in place of Slurm. `histories`: the states of each job, in the order in which they
    are submitted; the last one stays. A job whose last state is COMPLETED leaves a summary.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *histories: Sequence[Any]) -> None:
        self.submitted: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str]] = []
        self.cancelled: list[str] = []
        self.most_at_once = 0
        self._histories = [list(history) for history in histories]
        self._going: dict[str, list[Any]] = {}
        monkeypatch.setattr(sbatch, "client", self)
        self.seconds = itertools.count()
        monkeypatch.setattr(slurm_jobs.time, "monotonic", lambda: float(next(self.seconds)))
        monkeypatch.setattr(slurm_jobs.time, "sleep", lambda _: None)

    def __call__(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        if command[0] == "sbatch":
            self.submitted.append(command)
            self.environments.append(environment or {})
            number = str(100 + len(self.submitted))
            self._going[number] = self._histories.pop(0)
            self.most_at_once = max(self.most_at_once, len(self._going))
            return f"{number};cluster\n"
        if command[0] == "scancel":
            self.cancelled.append(command[1])
            return ""
        assert command[:4] == ("scontrol", "--oneliner", "show", "job")
        return self._show(command[4])

    def _show(self, number: str) -> str:
        states = self._going.get(number, [FORGOTTEN])
        state = states.pop(0) if len(states) > 1 else states[0]
        if isinstance(state, BaseException):
            raise state
        name, _, code = state.partition(" ")
        if name not in ("PENDING", "RUNNING", "COMPLETING"):
            self._going.pop(number)
        return f"JobId={number} JobName=x JobState={name} Reason=None ExitCode={code or '0:0'} x=y"


def config(path: Path, **slurm: Any) -> ExperimentConfig:
    return config_of(folder=str(path), where="slurm", time_limit_seconds=100.0, slurm=slurm)


def job_of(run: Run) -> TrainingJob:
    return TrainingJob("train", None, run.point.overrides, run.folder, run.point.ranks)


def outcomes(path: Path, **slurm: Any) -> list[Outcome]:
    made = config(path, **slurm)
    return list(run_on_slurm(made, ExperimentFolder(made).runs(POINTS), job_of, lambda _: None))


def test_the_command_line_of_a_job(tmp_path: Path) -> None:
    made = config(tmp_path, ranks_per_node=2, options=["--partition=short"])
    run = ExperimentFolder(made).run(POINTS[2], 3)
    assert batch_job(made, run, job_of(run)).command == [
        "sbatch", "--job-name=test-3.3",
        f"--output={tmp_path}/3_ranks=4/3/slurm.out", "--nodes=2", "--ntasks-per-node=2",
        "--ntasks=4", "--cpus-per-task=1", "--time=3", "--partition=short",
        str(Path(__file__).parents[2] / "slurm" / "train.sbatch"), "train",
        "ranks=4", f"folder='{tmp_path}/3_ranks=4/3'",
    ]  # fmt: skip
    placed = batch_job(config(tmp_path), run, job_of(run)).command
    assert not [word for word in placed if word.startswith(("--nodes", "--ntasks-per"))]


def test_jobs_are_waited_for_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ["PENDING", "RUNNING", "COMPLETING", "COMPLETED"]
    cluster = Cluster(monkeypatch, good, [*good[:2], "FAILED 3:0"], [*good[:2], "NODE_FAIL 0:0"])
    monkeypatch.setattr(slurm_jobs, "_WRITTEN_SECONDS", 0.0)
    found = outcomes(tmp_path)
    assert [(each.run.point.ranks, each.status) for each in found] == [(1, 0), (2, 3), (4, 1)]
    assert [each.output.strip() for each in found] == [
        "", "job 102 ended as FAILED", "job 103 ended as NODE_FAIL"
    ]  # fmt: skip
    assert (cluster.most_at_once, cluster.cancelled) == (1, [])
    assert cluster.environments[0]["OMP_NUM_THREADS"] == "1"
    assert cluster.environments[0]["DIST_ML_REQUEUE"] == "no"
    assert Path(cluster.environments[0]["DIST_ML_PYTHON"]).exists()


def test_several_jobs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = ["RUNNING"] * 9 + ["FAILED 1:0"], ["RUNNING", "FAILED 1:0"]
    cluster = Cluster(monkeypatch, slow, quick, quick)
    assert [each.run.point.ranks for each in outcomes(tmp_path, jobs_at_once=2)] == [2, 4, 1]
    assert cluster.most_at_once == 2


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (["PENDING"], "it did not start within slurm.wait_seconds=20"),
        (["RUNNING"], "its time_limit_seconds=100 were up"),
        ([MachineError("scontrol failed: no answer")], "it did not start within"),
    ],
    ids=["waits", "runs", "nobody answers"],
)
def test_what_does_not_end_is_cancelled(
    history: list[Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, history, ["FAILED 1:0"], ["FAILED 1:0"])
    first, *_ = outcomes(tmp_path, wait_seconds=20)
    assert (first.status, first.problem) == (124, words) or words in first.problem
    assert cluster.cancelled == ["101"]


def test_a_job_that_slurm_has_forgotten_is_judged_by_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ["FAILED 1:0"]
    Cluster(monkeypatch, ["RUNNING", MachineError("busy"), FORGOTTEN], failed, failed)
    made = config(tmp_path)
    runs = ExperimentFolder(made).runs(POINTS)
    found = run_on_slurm(made, runs, job_of, lambda _: finish(runs[0]))
    first = next(found)
    assert (first.status, first.problem, first.run.is_finished()) == (0, "", True)


def test_a_job_that_ends_while_it_is_cancelled_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, ["RUNNING"], ["FAILED 1:0"], ["FAILED 1:0"])

    def client(*command: str, environment: Mapping[str, str] | None = None) -> str:
        if command[0] == "scancel":
            raise MachineError("scancel failed: Invalid job id specified")
        return cluster(*command, environment=environment)

    monkeypatch.setattr(sbatch, "client", client)
    assert [each.status for each in outcomes(tmp_path)] == [124, 1, 1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_jobs_are_cancelled_when_the_experiment_is_stopped(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, ["PENDING", stop()], ["PENDING"])
    with pytest.raises(stop):
        outcomes(tmp_path, jobs_at_once=2)
    assert cluster.cancelled == ["101", "102"]


def test_a_job_of_a_killed_experiment_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ["FAILED 1:0"]
    cluster = Cluster(monkeypatch, ["PENDING", "PENDING", "RUNNING", "FAILED 7:0"], failed, failed)
    made = config(tmp_path)
    run = ExperimentFolder(made).run(POINTS[0], 1)
    assert job_goes_on(run) is None
    slurm_jobs._submitted(made, run, job_of)
    assert (run.folder / "slurm_job").read_text() == "101\n"
    assert job_goes_on(run) == "101"
    assert [each.status for each in outcomes(tmp_path)] == [7, 1, 1]
    assert [command[2] for command in cluster.submitted] == [
        "--job-name=test-1.1", "--job-name=test-2.1", "--job-name=test-3.1"
    ]  # fmt: skip
    assert job_goes_on(run) is None


def test_what_a_job_printed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ["FAILED 2:0"]
    Cluster(monkeypatch, failed, failed, failed)

    def writing(run: Run) -> TrainingJob:
        run.folder.mkdir(parents=True)
        (run.folder / "slurm.out").write_text("error: too bad\n")
        return job_of(run)

    made = config(tmp_path)
    runs = ExperimentFolder(made).runs(POINTS)
    assert next(run_on_slurm(made, runs, writing, lambda _: None)).output.startswith(
        "error: too bad\n"
    )


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["no-such-program"], "no-such-program could not be run .* on a login node"),
        (["sh", "-c", "echo Invalid partition >&2; exit 1"], "sh failed: Invalid partition; corr"),
    ],
)
def test_programs_of_slurm_that_fail_are_told(program: list[str], words: str) -> None:
    with pytest.raises(MachineError, match=words):
        sbatch.client(*program)
    assert sbatch.client("sh", "-c", "echo $X", environment={"X": "1"}) == "1\n"
