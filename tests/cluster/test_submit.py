"""`dist-ml submit` and slurm/sweep.sbatch on a real Slurm of virtual nodes."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
from virtual_slurm import VirtualSlurm

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
SCRIPT = str(REPOSITORY / "slurm" / "sweep.sbatch")
SMALL = ["data=synthetic", "data.num_train=64", "data.num_test=16", "epochs=1", "batch_size=16",
         "model.hidden=[8]"]  # fmt: skip


def variables(flavour: str) -> dict[str, str]:
    yielding = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    return {"DIST_ML_MPI": flavour, "PYTHONPATH": str(REPOSITORY), **yielding}


def submit(slurm: VirtualSlurm, flavour: str, own: Path, *arguments: str) -> str:
    """What it says; the jobs write their output where it was called."""
    output = f"--option=--output={own}/%j.out"
    program = [sys.executable, "-m", "dist_ml", "submit", *SMALL, output, *arguments]
    return slurm.client(*program, environment=variables(flavour), seconds=60.0)


def wait(slurm: VirtualSlurm, seconds: float = 200.0) -> None:
    """Until no job is left."""
    deadline = time.monotonic() + seconds
    while slurm.client("squeue", "--noheader", "--format=%i").strip():
        assert time.monotonic() < deadline, slurm.client("squeue")
        time.sleep(0.1)


def outputs(own: Path) -> str:
    return "\n".join(file.read_text() for file in own.glob("*.out"))


def test_a_sweep_is_a_job_array_whose_points_are_one_report(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    """Two tasks are sent again: one goes on with the point that isn't finished."""
    sweep = tmp_path / "sweep"
    points = ["--multirun", "ranks=1,2", "optimizer.lr=0.1,0.2", f"folder={sweep}"]
    site = tmp_path / "site.yaml"
    site.write_text('partition: main\ntime: "10"\njobs_at_once: 3\n')
    told = submit(slurm, flavour, tmp_path, *points, f"--site={site}")
    assert re.match(r"job \d+: sbatch .*--array=0-3%3 .*--ntasks=2 --time=10 ", told)
    wait(slurm)
    report = [sys.executable, "-m", "dist_ml", "report", str(sweep), "--json"]
    rows = json.loads(slurm.client(*report, environment=variables(flavour)))
    assert [(row["ranks"], row["status"]) for row in rows] == [
        (ranks, "finished") for ranks in (1, 1, 2, 2)
    ], outputs(tmp_path)
    names = sorted(folder.name for folder in sweep.iterdir())
    assert names[2] == "3_ranks=2,optimizer.lr=0.1"
    kept, lost = (sweep / names[index] / "summary.json" for index in (0, 1))
    before = kept.read_bytes()
    lost.unlink()
    script = ["--array=0,1", f"--output={tmp_path}/%j.out", SCRIPT, "train", *SMALL, *points[1:]]
    again = {**variables(flavour), "DIST_ML_PYTHON": sys.executable}
    slurm.client("sbatch", *script, environment=again)
    wait(slurm)
    assert kept.read_bytes() == before
    assert json.loads(lost.read_text())["status"] == "finished", outputs(tmp_path)
