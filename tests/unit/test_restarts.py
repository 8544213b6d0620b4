"""Jobs that are started again where they fail: which, how often, with which words."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_ml.cli import launch, main, restarts
from dist_ml.errors import ConfigError

SMALL = ("data=synthetic", "checkpoint.every=5")


class Jobs:
    """Ends each start with the next of `statuses`, and saves a checkpoint where `saves` has one."""

    def __init__(
        self, *statuses: int, folder: Path | None = None, saves: Sequence[int] = ()
    ) -> None:
        self.statuses, self.folder, self.saves = list(statuses), folder, list(saves)
        self.words: list[Sequence[str]] = []

    def start(self, words: Sequence[str], gone_seconds: float) -> int:
        self.words.append(words)
        if self.folder is not None and self.saves:
            step = self.folder / "checkpoints" / f"step-{self.saves.pop(0)}"
            step.mkdir(parents=True, exist_ok=True)
            (step / "COMMIT").touch()
        return self.statuses.pop(0)


@pytest.mark.parametrize("status", [0, 2, 3, 10, 15, 75, 124, 130, 138, 143])
def test_what_was_asked_for_or_refused_is_not_started_again(status: int) -> None:
    jobs = Jobs(status)
    assert restarts.run(SMALL, 3, jobs.start) == status
    assert len(jobs.words) == 1


@pytest.mark.parametrize(
    ("status", "why"),
    [(1, "an error on a rank"), (9, "Killed"), (69, "a rank was lost"), (137, "Killed"),
     (139, "Segmentation fault")],
)  # fmt: skip
def test_a_failure_is_started_again_in_the_same_folder(
    status: int, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "it's a run"
    jobs = Jobs(status, status, 0, folder=run, saves=[5, 20])
    assert restarts.run([*SMALL, "folder=" + f'"{run}"'], 2, jobs.start) == 0
    first, second, third = jobs.words
    assert first[-1].startswith("folder=")
    assert second == third == [*first, "resume=auto"]
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith(f"restart, 1 left: the job ended with status {status} ({why}")
    assert one.endswith(f"; it goes on in {run} from step 5")
    assert other.startswith("restart, 0 left: ")
    assert other.endswith("from step 20")


def test_the_folder_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default its name has the time in it."""
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(1, 0)
    restarts.run(SMALL, 1, jobs.start)
    folders = {word for words in jobs.words for word in words if word.startswith("folder=")}
    assert len(folders) == 1
    assert folders.pop().startswith("folder='runs/synthetic/20")


@pytest.mark.parametrize("resume", ["runs/old", "auto"])
def test_a_run_that_goes_on_does_so_again(resume: str) -> None:
    jobs = Jobs(1, 0)
    restarts.run([*SMALL, f"resume={resume}"], 1, jobs.start)
    named = [word for word in jobs.words[1] if word.startswith("resume=")]
    assert named[-1] == f"resume={resume}"
    assert any(word.startswith("folder=") for word in jobs.words[0]) == (resume == "auto")


def test_it_gives_up_with_the_last_status_and_says_that_nothing_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs(1, 137, 9, folder=tmp_path, saves=[5])
    assert restarts.run([*SMALL, f"folder={tmp_path}"], 2, jobs.start) == 9
    said = capsys.readouterr().err.splitlines()
    assert ["without a newer checkpoint" in line for line in said] == [False, True, True]
    assert said[-1].startswith("the job ended with status 9 (Killed), without")
    assert said[-1].endswith(
        f"no restart is left of 2; resume=auto goes on in {tmp_path} from step 5"
    )


def test_a_launcher_that_was_told_to_stop_starts_nothing_again() -> None:
    """Also where the signal met a job that was failing, which nobody could tell any more."""

    def start(words: Sequence[str], gone_seconds: float) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        return 137

    before = signal.getsignal(signal.SIGUSR1)
    assert restarts.run(SMALL, 3, start) == 137
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=synthetic"], "--restarts=2 needs checkpoints .* add checkpoint.every=<steps>"),
        ([*SMALL, "optimizer.lrr=3"], r"unknown key optimizer.lrr=3"),
    ],
)
def test_what_could_not_go_on_is_not_started(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restarts.run(words, 2, Jobs().start)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_a_number_that_is_none(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["launch", f"--restarts={number}", "train"]) == 2
    assert f"argument --restarts: {number} is not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["python", "x.py"], ["evaluate", "run"], ["train", "-m", "seed=1,2"]]
)
def test_what_is_no_single_run(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["launch", "--restarts", "2", *command]) == 2
    assert "--restarts goes on with a single run of dist-ml train" in capsys.readouterr().err


def test_launch_starts_on_the_same_ranks_within_one_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []

    def run(program: Sequence[str], ranks: int, mpi: str, **options: Any) -> SimpleNamespace:
        started.append((program[1:4], ranks, mpi, options.pop("time_limit_seconds")))
        assert options == {"survive": False}
        return SimpleNamespace(returncode=1 if len(started) == 1 else 0)

    monkeypatch.setattr(launch.mpiexec, "run", run)
    limits = ["--mpi", "openmpi", "--time-limit", "9"]
    assert launch.main(["-n", "3", *limits, "--restarts", "1", "train", *SMALL]) == 0
    (*first, before), (*second, after) = started
    assert first == second == [["-m", "dist_ml", "train"], 3, "openmpi"]
    assert after < before == 9


def test_train_sh_passes_it_on(tmp_path: Path) -> None:
    """Without the set-up, and with what only prints in place of Python."""
    script = Path(__file__).parents[2] / "launch" / "train.sh"
    (tmp_path / "train.sh").write_text(script.read_text())
    stand_ins = 'python=echo; set_up() { :; }; fail() { echo "$@" >&2; exit 1; }\n'
    (tmp_path / "setup.sh").write_text(stand_ins)

    def said(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(tmp_path / "train.sh"), *words],
            env={**os.environ, "DIST_ML_MPI": "openmpi"},
            capture_output=True,
            text=True,
            timeout=10,
        )
        return done.returncode, done.stdout + done.stderr

    start = "-m dist_ml launch --mpi openmpi"
    assert said() == (0, f"{start} train\n")
    words = ["--restarts", "2", "-n4", "a=1", "-n", "9"]
    assert said(*words) == (0, f"{start} --restarts 2 -n4 train a=1 -n 9\n")
    assert said("--ranks", "3", "--restarts=1") == (0, f"{start} -n 3 --restarts=1 train\n")
    assert said("--restarts")[0] == 1
