"""Ranks that are told to stop, from their first moment to their last, and by their launcher."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_ml.launch import process

REPOSITORY = Path(__file__).parents[2]
OVERRIDES = ("data=synthetic", "data.num_train=320", "data.num_test=32", "epochs=2", "ranks=2")

# It takes longer to save than Open MPI's mpiexec leaves the ranks that it ends, one second.
SAVES = """
import os, signal, time
from dist_ml.launch.mpi_installation import select_library
select_library()
from mpi4py import MPI
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
open(f"up-{MPI.COMM_WORLD.rank}", "w").close()
while not told:
    time.sleep(0.01)
time.sleep(2)
open(f"saved-{MPI.COMM_WORLD.rank}", "w").close()
"""


@pytest.fixture
def mark() -> str:
    return f"DIST_ML_TEST={uuid.uuid4().hex}"


@contextlib.contextmanager
def launched(mark: str, flavour: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`dist-ml launch` of two ranks, whose environment holds `mark`."""
    name, value = mark.split("=")
    own = {name: value, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    inherited = {key: text for key, text in os.environ.items() if key != "MPI4PY_LIBMPI"}
    launcher = subprocess.Popen(
        [sys.executable, "-m", "dist_ml", "launch", "-n", "2", "--mpi", flavour, *words],
        cwd=folder,
        env={**inherited, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.communicate()


def hears(pid: int, number: signal.Signals) -> bool:
    """Does the process handle or ignore the signal?"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt", "SigIgn"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_run_that_is_not_saved_outlives_sigusr1_at_any_moment(
    mark: str, flavour: str, tmp_path: Path
) -> None:
    """In MPI's start and in its end, too."""
    sent: dict[int, int] = {}
    with launched(mark, flavour, tmp_path, "train", "folder=run", *OVERRIDES) as launcher:
        deadline = time.monotonic() + 60
        while launcher.poll() is None:
            assert time.monotonic() < deadline
            for pid in process.ranks_of(mark).values():
                if hears(pid, signal.SIGUSR1):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGUSR1)
                    sent[pid] = sent.get(pid, 0) + 1
            time.sleep(0.005)
        assert launcher.returncode == 0, launcher.communicate()[0]
    assert len(sent) == 2
    assert min(sent.values()) > 10
    for rank in range(2):
        log = (tmp_path / "run" / "log" / f"rank-{rank:04}.log").read_text()
        assert log.count("SIGUSR1 is ignored") == 1


def test_the_launcher_leaves_its_ranks_the_time_to_save(
    mark: str, flavour: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(SAVES)
    with launched(mark, flavour, tmp_path, "program.py") as launcher:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("up-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        launcher.terminate()
        output, _ = launcher.communicate(timeout=30)
        assert launcher.returncode == 143, output
    assert len(list(tmp_path.glob("saved-*"))) == 2, output
