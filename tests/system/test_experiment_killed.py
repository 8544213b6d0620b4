"""An experiment on up to 2 ranks that is killed half-way and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_ml.launch import mpi_installation
from dist_ml.launch.process import marked
from tests.experiments import write_small

REPOSITORY = Path(__file__).parents[2]
MARK = "DIST_ML_TEST_EXPERIMENT"
SECONDS = 150.0  # that a busy machine may take for an experiment


class Experiments:
    """Starts experiments in a folder, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, mpi: str, *overrides: str) -> subprocess.Popen[str]:
        if mpi not in [installation.name for installation in mpi_installation.available()]:
            pytest.skip(f"the {mpi} wheel is not installed")
        command = [sys.executable, "-m", "dist_ml", "experiment", "--config-dir=.", "small"]
        own = {"PYTHONPATH": str(REPOSITORY), "DIST_ML_MPI": mpi, MARK: str(self.folder)}
        self._started.append(
            subprocess.Popen(
                [*command, *overrides],
                cwd=self.folder,
                env={**os.environ, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self._started[-1]

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()

    def wait_for_ends(self) -> None:
        deadline = time.monotonic() + SECONDS
        while self.left:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @property
    def left(self) -> list[int]:
        """Processes that they have left behind."""
        return marked(f"{MARK}={self.folder}")


@pytest.fixture
def experiments(tmp_path: Path) -> Iterator[Experiments]:
    write_small(tmp_path)
    made = Experiments(tmp_path)
    yield made
    made.end()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("ending", "mpi"), [(signal.SIGTERM, "mpich"), (signal.SIGKILL, "openmpi")]
)
def test_killed_half_way_it_goes_on(
    ending: signal.Signals, mpi: str, experiments: Experiments
) -> None:
    """The second run, on two ranks, has begun when the experiment is killed."""
    out = experiments.folder / "out"
    process = experiments.start(mpi)
    first, second = out / "1_ranks=1" / "1", out / "2_ranks=2" / "1"
    wait_until((second / "log" / "rank-0001.log").exists, process)
    process.send_signal(ending)
    _, told = process.communicate(timeout=30)
    assert process.returncode != 0
    assert ("to go on: dist-ml experiment small" in told) == (ending != signal.SIGKILL)
    experiments.wait_for_ends()  # of ranks that nobody waits for any more
    was_finished = (second / "summary.json").exists()  # it may have been quicker
    summary = (first / "summary.json").read_text()

    again = experiments.start(mpi)
    said, told = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, told
    assert f"{2 if was_finished else 1} of 2 runs are finished" in said
    assert (first / "summary.json").read_text() == summary
    assert (out / "failed" / "2_ranks=2,1,1").is_dir() != was_finished
    report = json.loads((out / "report.json").read_text())
    assert [point["finished"] for point in report["points"]] == [1, 1]
    assert report["points"][1]["speed_up"]["median"] > 0
    assert experiments.left == []


def test_a_point_that_fails_does_not_stop_the_others(experiments: Experiments) -> None:
    """Samples that aren't there: found by the ranks of one of the runs."""
    axes = "axes={samples:{bad:['data=arrays','data.path=/nowhere'],good:['data=synthetic']}}"
    process = experiments.start("mpich", axes, "axes.ranks=[2]", "~fixed.data")
    said, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, told
    assert told.count("error: data.path=/nowhere is not a folder") == 1
    assert "1 of 2 runs failed; to run them again: dist-ml experiment small" in told
    report = json.loads((experiments.folder / "out" / "report.json").read_text())
    assert [point["finished"] for point in report["points"]] == [0, 1]
    assert "/nowhere" in report["failures"][0]["problem"]
    assert "samples=good" in said
