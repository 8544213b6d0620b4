"""`dist-ml submit` without a Slurm: what it prints, what a task runs, what it refuses."""

import shlex
from pathlib import Path

import pytest

from dist_ml.cli import main
from dist_ml.cli.arguments import parse
from dist_ml.cli.submit import task_command
from dist_ml.cli.sweep_points import plan
from dist_ml.errors import ConfigError
from dist_ml.launch import sbatch

SCRIPTS = Path(__file__).parents[2] / "slurm"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No site file but the test's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "dist_ml").mkdir()
    return tmp_path


def site(home: Path, text: str) -> Path:
    file = home / "dist_ml" / "site.yaml"
    file.write_text(text)
    return file


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main.main(["submit", "--print", "--python=/py", *argv]) == 0
    return shlex.split(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main.main(["submit", *argv]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_a_run_as_sbatch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--nodes=2", "--cpus-per-task=4", "-t", "2:00:00", "-A", "us", "--partition=short"]
    mesh = ["mesh.data=2", "mesh.pipeline=2", "model.hidden=[8,8]"]
    assert printed(capsys, "train", *flags, *mesh, "--option=--qos=high", "--mpi=openmpi") == [
        "DIST_ML_PYTHON=/py", "DIST_ML_MPI=openmpi", "sbatch", "--job-name=digits", "--nodes=2",
        "--ntasks-per-node=2", "--ntasks=4", "--cpus-per-task=4", "--time=2:00:00",
        "--partition=short", "--account=us", "--qos=high", str(SCRIPTS / "train.sbatch"), "train",
        *mesh,
    ]  # fmt: skip


def test_a_sweep_is_an_array_in_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "-m", "ranks=1,3", "seed=1,2", "folder=out", "--jobs-at-once=2")
    assert told[2:] == [
        "--job-name=digits", "--array=0-3%2", "--ntasks=3", str(SCRIPTS / "sweep.sbatch"),
        "train", "ranks=1,3", "seed=1,2", "folder='out'",
    ]  # fmt: skip


def test_a_task_runs_the_point_of_its_number() -> None:
    request = parse(["seed=1,2", "ranks=1,3", "folder=out", "--debug"], "dist-ml submit", "train")
    points = plan(request)
    for index, ranks in enumerate((1, 3, 1, 3)):
        told = task_command(request, index, {"SLURM_NTASKS": "4"})
        train = ["bash", str(SCRIPTS / "train.sbatch"), "train", "--debug"]
        overrides = points[index].overrides
        folder = f"folder='out/{points[index].folder.name}'"
        assert told == ["env", f"SLURM_NTASKS={ranks}", *train, *overrides, folder]
    plain = parse(["seed=1,2"], "dist-ml submit", "train")
    told = task_command(plain, 1, {"SLURM_NTASKS": "4", "SLURM_ARRAY_JOB_ID": "7"})
    assert told[1] == "SLURM_NTASKS=4"
    assert told[-1] == "folder='multirun/digits/slurm-7/2_seed=2'"
    for index, words in ((4, "the sweep has 4; submit it with --array=0-3"), (1, "--ntasks=3")):
        with pytest.raises(ConfigError, match=words):
            task_command(request, index, {"SLURM_NTASKS": "2"})


def test_flags_win_over_the_site_file(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    keys = "partition: short\naccount: us\nntasks_per_node: 2\noptions: [--exclusive]\n"
    site(home, keys + "mpi: mpich\n")
    told = printed(capsys, "ranks=4", "--partition=long", "--option=--qos=high")
    assert told[1] == "DIST_ML_MPI=mpich"
    placed = ["--nodes=2", "--ntasks-per-node=2", "--ntasks=4"]
    assert told[4:10] == [*placed, "--partition=long", "--account=us", "--exclusive"]
    other = home / "other.yaml"
    other.write_text("")
    assert "--account=us" not in printed(capsys, "ranks=4", f"--site={other}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partion: x\n", "unknown key partion=x (did you mean partition?)"),
        ("time: 2:00:00\n", 'put it in quotes, as in time: "12:00:00"'),
        ('time: "soon"\n', "time=soon is not a time limit of sbatch"),
        ("cpus_per_task: 0\n", "cpus_per_task=0 must be at least 1"),
        ("options: [high]\n", "options holds high, which sbatch would take for its script"),
        ("account: ''\n", "is empty"),
        ("- a\n", "must be a group of keys"),
        ("a: [\n", "can't be read"),
    ],
)
def test_a_site_file_with_a_mistake_is_named(
    text: str, words: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    file = site(home, text)
    told = refusal(capsys, "ranks=2")
    assert told.startswith(f"error: site file {file}")
    assert words in told


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "how many ranks? Neither ranks nor the mesh says it"),
        (["ranks=4", "-n", "2"], "--ntasks=2 asks for other ranks than the configuration"),
        (["-m", "ranks=1,4", "-n", "2"], "point 2 of the sweep (ranks=4): --ntasks=2 asks for"),
        (["ranks=2", "-N", "3"], "3 nodes are more than the ranks, 2"),
        (["ranks=8", "-N", "3", "--ntasks-per-node=2"], "3 nodes of 2 ranks hold 6, but the job"),
        (["ranks=4", "mesh.pipeline=3"], "does not divide the 4 ranks"),
        (["ranks=2", "allreduce.name=rign"], "allreduce.name=rign is not one of"),
        (["ranks=2", "--time=soon"], "--time=soon is not a time limit"),
        (["ranks=2", "--nodes=0"], "0 is not a number; give 1 or more"),
        (["ranks=2", "--site=/nowhere"], "site file /nowhere can't be read"),
        (["ranks=2", "lr=1,2"], "add --multirun"),
        (["other", "ranks=2"], "other is not one of gemm, schedule, train"),
        (["other", "--config-name=train"], "both name the configuration"),
        (["-m", "folder=a,b", "ranks=2"], "folder can't be varied"),
        (["--task=0", "ranks=2"], "--ntasks=2"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_nothing_is_submitted_that_could_not_run(
    argv: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sbatch, "client", lambda *_, **__: pytest.fail("it was submitted"))
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert words in refusal(capsys, *argv)


def test_the_script_knows_the_seconds_that_a_signal_leaves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = printed(capsys, "ranks=2", "--option=--signal=B:USR1@300")
    assert told[:3] == ["DIST_ML_PYTHON=/py", "DIST_ML_LEAD_SECONDS=300", "sbatch"]


def test_a_submission_tells_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def client(*command: str, environment: dict[str, str]) -> str:
        told.extend((command[:2], environment))
        return "12;cluster\n"

    monkeypatch.setattr(sbatch, "client", client)
    assert main.main(["submit", "ranks=2", "--python=/py"]) == 0
    assert told == [("sbatch", "--parsable"), {"DIST_ML_PYTHON": "/py"}]
    assert capsys.readouterr().out.startswith("job 12: sbatch --job-name=digits --ntasks=2")
