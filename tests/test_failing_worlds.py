"""Jobs that fail on real ranks end within seconds, say why once, and leave it in the run folder."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_ml.launch import mpiexec
from dist_ml.launch.mpiexec import Completed

TIME_LIMIT_SECONDS = 60.0
FEW_SECONDS = 5.0
RANKS = 3
# The ranks meet, rank 0 notes the time, and then the last rank fails as the test says.
PROGRAM = """
import os, sys, time
from pathlib import Path
from dist_ml.cli import ranks
from dist_ml.errors import DataError
from dist_ml.train import open_folder

def body(world):
    open_folder.create("run", {}, world)
    BEFORE
    world.barrier()
    if world.rank == 0:
        Path("failing-at").write_text(str(time.time()))
    world.barrier()
    if world.rank == world.size - 1:
        STATEMENT
    AFTER
    return 0

sys.exit(ranks.run_on_ranks(body))
"""

KILLED = """
import os, sys, time
from pathlib import Path
from dist_ml.cli import ranks

def body(world):
    world.barrier()
    time.sleep(3)
    if world.rank == 1:
        Path("pid").write_text(str(os.getpid()))
        os.kill(os.getpid(), 9)
    world.barrier()
    return 0

sys.exit(ranks.run_on_ranks(body))
"""

Job = Callable[..., tuple[Completed, float]]


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def on_ranks(flavour: str, *arguments: str) -> Completed:
    """Python on the ranks of one MPI."""
    return mpiexec.run(
        [sys.executable, *arguments],
        RANKS,
        flavour,
        time_limit_seconds=TIME_LIMIT_SECONDS,
        capture=True,
        environment=ENVIRONMENT,
    )


@pytest.fixture
def job(flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Runs PROGRAM with a statement on the ranks of one MPI: how it ended, and how many seconds
    after it failed.
    """
    monkeypatch.chdir(tmp_path)

    def run(
        statement: str, before: str = "pass", after: str = "world.barrier()"
    ) -> tuple[Completed, float]:
        program = (
            PROGRAM.replace("BEFORE", before)
            .replace("STATEMENT", statement)
            .replace("AFTER", after)
        )
        (tmp_path / "program.py").write_text(program)
        completed = on_ranks(flavour, "program.py")
        return completed, time.time() - float((tmp_path / "failing-at").read_text())

    return run


def test_an_exception_on_one_rank(job: Job, tmp_path: Path) -> None:
    completed, seconds = job("raise ValueError('a bug')")
    assert completed.returncode != 0
    assert seconds < FEW_SECONDS
    assert completed.stderr.count("Traceback") == 1
    assert completed.stderr.count("error on rank 2 of 3 on ") == 1
    assert "ValueError: a bug" in (tmp_path / "run" / "log" / "rank-0002.log").read_text()


def test_a_mistake_that_one_rank_sees(job: Job) -> None:
    completed, seconds = job("raise DataError('bad file; mend it')")
    assert completed.returncode != 0
    assert seconds < FEW_SECONDS
    assert completed.stderr.count("bad file; mend it") == 1
    assert "Traceback" not in completed.stderr


def test_a_rank_that_is_killed(job: Job) -> None:
    completed, seconds = job("os.kill(os.getpid(), 9)")
    assert completed.returncode != 0
    assert seconds < FEW_SECONDS
    assert "Traceback" not in completed.stderr


def test_a_rank_that_is_killed_while_others_reduce_in_shared_memory(job: Job) -> None:
    """The others notice by themselves as well: see test_dead_ranks.py. Nothing of the memory
    stays behind.
    """
    kept = set(os.listdir("/dev/shm"))
    before = "import torch; from dist_ml.comm.allreduce import family; "
    before += "reduce = family.make('shared_memory', world); "
    completed, seconds = job(
        "os.kill(os.getpid(), 9)",
        before=before + "x = reduce.allocate(1_000_000, torch.float32); reduce(x)",
        after="[reduce(x) for _ in range(1000)]",
    )
    assert completed.returncode != 0
    assert seconds < FEW_SECONDS
    deadline = time.monotonic() + FEW_SECONDS  # the launchers clean up after themselves
    while not set(os.listdir("/dev/shm")) <= kept and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(os.listdir("/dev/shm")) <= kept


def test_a_bad_configuration_is_told_once(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    completed = on_ranks(flavour, "-m", "dist_ml", "train", "optimizer.lrr=3")
    assert completed.returncode == 2
    assert completed.stderr.count("error: unknown key optimizer.lrr=3 (did you mean lr?)") == 1
    assert "Traceback" not in completed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| head -n 1"])
def test_a_run_outlives_its_standard_output(
    redirection: str, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that nobody can read are lost; the run is not, or its status says so: MPICH's launcher
    ends its ranks when it can't write.
    """
    monkeypatch.chdir(tmp_path)
    launch = f"{sys.executable} -m dist_ml launch -n 2 --mpi {flavour} --time-limit 60"
    train = "train epochs=2 folder=run"
    shell = f"set -o pipefail; {launch} {train} {redirection}"
    done = subprocess.run(
        ["bash", "-c", shell],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "Traceback" not in done.stderr
    if flavour == "mpich":
        assert done.returncode != 0 or (tmp_path / "run" / "summary.json").exists(), done
        return
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished", done
    assert done.returncode == 0, done


def test_a_rank_that_is_killed_is_named(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(KILLED)
    completed = on_ranks(flavour, "program.py")
    assert completed.returncode != 0
    named = f"rank 1 on {socket.gethostname()} (process {(tmp_path / 'pid').read_text()})"
    assert f"{named} ended first: Killed (signal 9)" in completed.stderr
