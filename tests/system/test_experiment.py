"""An experiment on 2 ranks that is killed half-way and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_ml.launch.process import marked

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = """\
# @package _global_
name: small
folder: out
kind: strong
base: train
fixed: {data: synthetic, data.num_train: 2048, data.num_test: 64, model.hidden: [16], epochs: 2}
axes: {ranks: [1, 2]}
repetitions: 2
where: local
time_limit_seconds: 60
most_ranks: 2
"""
MARK = "EXPERIMENT_OF_A_TEST"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "small.yaml").write_text(EXPERIMENT)
    return tmp_path


def start(folder: Path, flavour: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dist_ml", "experiment", "--config-dir=.", "small"]
    mine = {"PYTHONPATH": str(REPOSITORY), "DIST_ML_MPI": flavour, MARK: str(folder)}
    return subprocess.Popen(
        [*command, *overrides],
        cwd=folder,
        env={**os.environ, **mine},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_killed_half_way_it_goes_on(ending: signal.Signals, flavour: str, own: Path) -> None:
    """The second of four runs, on two ranks, is trained when the experiment is killed."""
    process = start(own, flavour)
    runs = [own / "out" / name for name in ("1_ranks=1/1", "2_ranks=2/1")]
    wait_for((runs[1] / "log" / "rank-0001.log").exists, process)
    process.send_signal(ending)
    _, told = process.communicate(timeout=30)
    assert process.returncode != 0
    if ending == signal.SIGINT:
        assert "to go on: dist-ml experiment small" in told
    first = (runs[0] / "summary.json").read_text()
    stopped_in_time = not (runs[1] / "summary.json").exists()

    again = start(own, flavour)
    said, complained = again.communicate(timeout=100)
    assert again.returncode == 0, complained
    assert f"{1 if stopped_in_time else 2} of 4 runs are finished" in said
    assert (runs[0] / "summary.json").read_text() == first
    assert (own / "out" / "failed" / "2_ranks=2,1,1").is_dir() == stopped_in_time
    report = json.loads((own / "out" / "report.json").read_text())
    assert [point["finished"] for point in report["points"]] == [2, 2]
    assert report["points"][1]["speed_up"]["median"] > 0
    assert marked(f"{MARK}={own}") == []


def test_a_point_that_fails_does_not_stop_the_others(flavour: str, own: Path) -> None:
    """Samples that aren't there: found by the ranks of one of the runs."""
    axes = "axes={samples:{bad:['data=arrays','data.path=/nowhere'],good:['data=synthetic']}}"
    process = start(own, flavour, axes, "axes.ranks=[2]", "~fixed.data", "repetitions=1")
    said, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert told.count("/nowhere") == 1
    assert "1 of 2 runs failed; to run them again: dist-ml experiment small" in told
    report = json.loads((own / "out" / "report.json").read_text())
    assert [point["finished"] for point in report["points"]] == [0, 1]
    assert "/nowhere" in report["failures"][0]["problem"]
    assert "samples=good" in said
