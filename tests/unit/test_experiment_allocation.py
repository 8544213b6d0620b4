"""Runs inside a job of Slurm, whose programs only answer: what is started, and what is left."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_ml.errors import DistMLError, MachineError
from dist_ml.experiment import allocation_jobs, points
from dist_ml.experiment.allocation_jobs import run_in_allocation
from dist_ml.experiment.folder import ExperimentFolder, Run
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch import sbatch, stacks
from tests.experiments import config_of, point_of

TELLS = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('told.json', 'w'))"


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of the allocation, which scancel ends; the batch script stays."""
    running = ["7.batch", "7.extern", "7.0", "7.1"]

    def client(*command: str) -> str:
        if command[:2] == ("scancel", "--signal=KILL"):
            assert set(command[2:]) <= {"7.0", "7.1"}
            running[:] = [step for step in running if step not in command]
        return "\n".join(running)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setattr(sbatch, "client", client)
    monkeypatch.setattr(sbatch, "script", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return running


def outcomes(path: Path, script: str, limit: float = 60.0) -> Any:
    (path / "train.sbatch").write_text(script)
    config = config_of(folder=str(path / "out"), where="allocation", time_limit_seconds=limit,
                       threads=2, mpi="openmpi")  # fmt: skip

    def job_of(run: Run) -> TrainingJob:
        return TrainingJob("train", None, run.point.overrides, run.folder, run.point.ranks)

    runs = ExperimentFolder(config).runs([point_of(1, 3)])
    return run_in_allocation(config, runs, job_of, lambda _: None)


def test_a_run_is_the_script_on_its_ranks(tmp_path: Path, steps: list[str]) -> None:
    (done,) = outcomes(tmp_path, f'"$DIST_ML_PYTHON" -c "{TELLS}" "$@"')
    assert done.status == 0, done
    arguments, variables = json.loads((tmp_path / "told.json").read_text())
    folder = f"folder='{tmp_path}/out/1_ranks=3/1'"
    assert arguments == ["train", "ranks=3", folder]
    expected = {
        "SLURM_NTASKS": "3",
        "OMP_NUM_THREADS": "2",
        "DIST_ML_MPI": "openmpi",
        "DIST_ML_REQUEUE": "no",
    }
    assert expected.items() <= variables.items()
    assert not {stacks.TIME_LIMIT, stacks.DEADLINE, stacks.FOLDER} & set(variables)
    assert len(steps) == 4  # nothing failed, so nothing is ended


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("exec sleep 60", 124)])
def test_no_step_outlives_a_run_that_failed(
    script: str, status: int, tmp_path: Path, steps: list[str]
) -> None:
    (done,) = outcomes(tmp_path, script, limit=1.0)
    assert done.status == status
    assert steps == ["7.batch", "7.extern"]


def test_steps_that_stay_are_an_error(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbatch, "client", lambda *_: "7.0")
    monkeypatch.setattr(allocation_jobs, "_STEPS_SECONDS", 0.3)
    with pytest.raises(MachineError, match=r"steps 7.0 of this allocation don't end"):
        list(outcomes(tmp_path, "exit 1"))


def test_points_fit_the_allocation(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(where="allocation")
    points.check_point(config, point_of(1, 4).config, 4)
    for variable, words in ((None, "--ntasks=5"), ("SLURM_JOB_ID", "submit slurm/experiment")):
        if variable:
            monkeypatch.delenv(variable)
        with pytest.raises(DistMLError, match=words):
            points.check_point(config, point_of(1, 5).config, 5)
