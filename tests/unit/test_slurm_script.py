"""slurm/train.sbatch, with programs of Slurm that only answer: what signals make of a job."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "train.sbatch"

# The step says that it has begun, and does what the test wants: `stops` (once it is told), `slow`
# (the srun before it takes a while), `fails` (is refused), `breaks` (a rank is killed), `dies`
# (of a SIGUSR1 that comes too early).
PROGRAMS = {
    "python": "echo mpich mpich",
    "squeue": 'echo "$SLURM_TIMES"',
    "scontrol": 'echo "$@" >>requeued',
    "srun": """
case "$*" in *shared_memory*) touch cleaning; [ $DOES != slow ] || sleep 0.5; exit 0 ;; esac
echo "$@" >arguments
write() { mkdir -p "$1"; echo '{"status": "stopped"}' >"$1/new"; mv "$1/new" "$1/summary.json"; }
case $DOES in
    stops) trap 'write "$FOLDER"; exit 75' USR1; trap 'exit 143' TERM ;;
    fails) mkdir -p "$FOLDER/log"; touch begun; exit 2 ;;
    breaks) mkdir -p "$FOLDER/log"; touch begun; exit 137 ;;
    dies) kill -USR1 $PPID; sleep 0.2; exit 138 ;;
esac
touch begun
for _ in $(seq 100); do sleep 0.05; [ ! -e end ] || exit 0; done
exit 9
""",
}


class Job:
    """The script, running in a folder of its own as a job of `minutes`, of which `left` seconds are
    left.
    """

    def __init__(
        self,
        folder: Path,
        does: str,
        *overrides: str,
        minutes: int = 60,
        left: int = 99,
        **environment: str,
    ) -> None:
        self.folder = folder
        for name, text in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)
        end = int(time.time()) + left
        own = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "DIST_ML_PYTHON": str(folder / "python"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS": "2",
            "SLURM_TIMES": f"{end - 60 * minutes} {end}",
            "DOES": does,
            "FOLDER": "runs/slurm-7",
        }
        inherited = {name: text for name, text in os.environ.items() if "DIST_ML" not in name}
        self._process = subprocess.Popen(
            ["bash", str(SCRIPT), "train", *overrides],
            cwd=folder,
            env={**inherited, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tell(self, *numbers: signal.Signals, once: str = "begun") -> "Job":
        """Send signals to the script, when it has come so far."""
        deadline = time.monotonic() + 10
        while not (self.folder / once).exists():
            assert time.monotonic() < deadline, f"there is no {once}"
            time.sleep(0.01)
        for number in numbers:
            self._process.send_signal(number)
            time.sleep(0.1)
        return self

    def end(self) -> tuple[int, str]:
        """Exit status and output."""
        output, _ = self._process.communicate(timeout=10)
        return self._process.returncode, output

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


USR1, TERM = signal.SIGUSR1, signal.SIGTERM


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], "runs/slurm-7"),
        (["folder='my run'"], "my run"),
        (["resume=auto", "folder=mine"], "mine"),
        (["resume=old"], "old"),
    ],
    ids=str,
)
def test_a_run_that_stops_is_queued_again_whatever_names_its_folder(
    overrides: Sequence[str], folder: str, tmp_path: Path
) -> None:
    job = Job(tmp_path, "stops", *overrides, FOLDER=folder).tell(USR1)
    status, output = job.end()
    assert (status, job.requeued) == (75, True), output
    assert "stopped and saved, so it is queued again" in output
    told = (tmp_path / "arguments").read_text()
    assert told.count("resume=") == 1
    assert told.count("folder=") == (0 if "resume=old" in overrides else 1)


def test_a_task_of_an_array_is_queued_again_alone(tmp_path: Path) -> None:
    """The last one's job number is the array's, too."""
    own = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    status, output = Job(tmp_path, "stops", **own).tell(USR1).end()
    assert status == 75, output
    assert (tmp_path / "requeued").read_text() == "requeue 7_3\n"


def test_signals_before_the_step_mean_that_nothing_was_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "slow").tell(USR1, once="cleaning")
    status, output = job.end()
    assert (status, job.requeued, (tmp_path / "arguments").exists()) == (75, True, False), output
    (tmp_path / "requeued").unlink()
    (tmp_path / "cleaning").unlink()
    job = Job(tmp_path, "slow").tell(TERM, once="cleaning")
    status, output = job.end()
    assert (status, job.requeued, (tmp_path / "arguments").exists()) == (143, False, False), output


def test_a_signal_that_meets_a_step_that_is_starting_queues_it_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "dies")
    assert (job.end()[0], job.requeued) == (75, True)


@pytest.mark.parametrize(("left", "requeued"), [(99, False), (0, True)], ids=["other", "limit"])
def test_sigterm_saves_and_only_the_time_limit_queues_again(
    left: int, requeued: bool, tmp_path: Path
) -> None:
    """Slurm knows by itself what becomes of a job that it pre-empts or that is cancelled."""
    job = Job(tmp_path, "stops", left=left).tell(TERM)
    status, output = job.end()
    assert (status, job.requeued) == (75, requeued), output
    assert "stopped and saved" in output


@pytest.mark.parametrize(
    ("minutes", "overrides", "environment"),
    [
        (3, [], {}),
        (4, [], {"DIST_ML_LEAD_SECONDS": "0180.5"}),
        (60, [], {"DIST_ML_REQUEUE": "no"}),
        (60, ["resume=null"], {}),
    ],
    ids=["short", "long lead", "one life", "not saved"],
)
def test_where_the_signal_says_nothing_it_is_ignored(
    minutes: int, overrides: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    job = Job(tmp_path, "stops", *overrides, minutes=minutes, **environment)
    job.tell(USR1, once="cleaning").tell(USR1)
    (tmp_path / "end").touch()
    assert (job.end()[0], job.requeued) == (0, False)
    saves = "resume=auto" in (tmp_path / "arguments").read_text()
    assert saves == (minutes < 60)


def test_a_summary_of_an_earlier_life_does_not_queue_a_failing_job_for_ever(tmp_path: Path) -> None:
    (tmp_path / "runs" / "slurm-7").mkdir(parents=True)
    (tmp_path / "runs" / "slurm-7" / "summary.json").write_text('{"status": "stopped"}')
    job = Job(tmp_path, "fails")
    assert (job.end()[0], job.requeued) == (2, False)


def test_a_lead_that_is_no_number_is_told(tmp_path: Path) -> None:
    status, output = Job(tmp_path, "stops", DIST_ML_LEAD_SECONDS="2m").end()
    assert status == 2
    assert "DIST_ML_LEAD_SECONDS=2m must be a number of seconds" in output


def test_a_rank_that_fails_queues_the_job_again_as_often_as_it_may(tmp_path: Path) -> None:
    """In all its lives; unless asked, not at all."""
    assert (Job(tmp_path, "breaks").end()[0], (tmp_path / "requeued").exists()) == (137, False)
    for status in (75, 75, 137):
        found, output = Job(tmp_path, "breaks", DIST_ML_RESTARTS="2").end()
        assert found == status, output
        assert (tmp_path / "requeued").exists() == (status == 75)
        (tmp_path / "requeued").unlink(missing_ok=True)
    assert "no restart is left of 2; resume=runs/slurm-7 goes on with it" in output


@pytest.mark.parametrize("told", [False, True])
def test_what_was_refused_or_told_to_stop_did_not_fail(told: bool, tmp_path: Path) -> None:
    job = Job(tmp_path, "stops" if told else "fails", DIST_ML_RESTARTS="2")
    if told:
        job.tell(TERM)
    status, output = job.end()
    assert (status, job.requeued) == (75 if told else 2, False), output


def test_a_number_of_restarts_that_is_none_is_told(tmp_path: Path) -> None:
    status, output = Job(tmp_path, "stops", DIST_ML_RESTARTS="-1").end()
    assert status == 2
    assert "DIST_ML_RESTARTS=-1 must be a number of times" in output
