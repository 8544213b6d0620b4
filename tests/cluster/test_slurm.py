"""`slurm/train.sbatch` on a real Slurm of virtual nodes."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from virtual_slurm import VirtualSlurm

from dist_ml.launch import process
from dist_ml.train import metrics

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = str(REPOSITORY / "slurm" / "train.sbatch")


def variables(flavour: str) -> dict[str, str]:
    yielding = {
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }  # the nodes share this machine's cores
    return {
        "DIST_ML_MPI": flavour,
        "DIST_ML_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        **yielding,
    }


def test_one_job_trains_on_nodes_and_ranks_of_the_command_line(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [f"folder={run}", "epochs=2", "lr_schedule=constant", "ranks=4"]
    status, output = slurm.submit(
        "--nodes=2", "--ntasks=4", SCRIPT, "train", *overrides, environment=variables(flavour)
    )
    assert status == 0, output
    assert f"on 4 ranks, 2 nodes, 1 threads a rank, {flavour}" in output
    assert (run / "summary.json").exists(), output
    assert json.loads((run / "summary.json").read_text())["ranks"] == 4
    assert len(list((run / "log").glob("rank-*.log"))) == 4


def losses(run: Path) -> list[tuple[int, float]]:
    lines = metrics.read(run / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


OVERRIDES = ["data=synthetic", "data.num_train=512", "batch_size=16", "epochs=60"]
SIZE = ("--nodes=2", "--ntasks=4", SCRIPT, "train", *OVERRIDES)


def submit_and_tell(slurm: VirtualSlurm, flavour: str, run: Path, *scancel: str) -> tuple[int, str]:
    """A job that is told something once its run has begun: its exit status and output."""

    def tell() -> None:
        (job,) = slurm.client("squeue", "--noheader", "--format=%i").split()
        slurm.client("scancel", *scancel, job)

    return submit_and(tell, slurm, run, variables(flavour))


def submit_and(
    disturb: Callable[[], object],
    slurm: VirtualSlurm,
    run: Path,
    environment: dict[str, str],
    *overrides: str,
) -> tuple[int, str]:
    """A job to which `disturb` does something once its run has begun."""

    def disturbing() -> None:
        file = run / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not file.exists() or file.read_bytes().count(b"\n") < 10:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        disturb()

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturbing)
        ended = slurm.submit(*SIZE, f"folder={run}", *overrides, environment=environment)
        disturbed.result()
    return ended


def test_a_job_that_is_told_saves_is_queued_again_and_comes_to_the_same_end(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    """The signal goes to the batch script, as `--signal=B:USR1@…` sends it."""
    run = tmp_path / "told"
    status, output = submit_and_tell(slurm, flavour, run, "--batch", "--signal=USR1")
    assert status == 0, output
    for words in ("stopped by SIGUSR1 after step", "so it is queued again", "goes on from step"):
        assert words in output, output
    folder = f"folder={tmp_path / 'whole'}"
    assert slurm.submit(*SIZE, folder, environment=variables(flavour))[0] == 0
    assert losses(run) == losses(tmp_path / "whole")


def test_a_job_whose_rank_is_killed_is_queued_again_where_it_may(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    """From the last checkpoint; once, as its second life is undisturbed."""
    run, mark = tmp_path / "killed", f"DIST_ML_TEST={tmp_path}"
    own = {**variables(flavour), "DIST_ML_RESTARTS": "1", "DIST_ML_TEST": str(tmp_path)}

    def kill() -> None:
        os.kill(process.ranks_of(mark)[3], signal.SIGKILL)

    status, output = submit_and(kill, slurm, run, own, "checkpoint.every=40")
    assert status == 0, output
    assert "(restart 1 of 1), so it is queued again" in output
    assert "goes on from step" in output
    folder = f"folder={tmp_path / 'whole'}"
    assert slurm.submit(*SIZE, folder, environment=variables(flavour))[0] == 0
    assert losses(run) == losses(tmp_path / "whole")


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    run = tmp_path / "cancelled"
    _, output = submit_and_tell(slurm, flavour, run)
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped", output
    assert "so it is queued again" not in output


def test_singletons_are_refused_once_and_in_words(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    wrong = {**variables(flavour), "SLURM_MPI_TYPE": "none"}
    status, output = slurm.submit(
        "--nodes=2", "--ntasks=4", SCRIPT, "train", f"folder={tmp_path / 'run'}", environment=wrong
    )
    assert status != 0, output
    assert output.count("worlds of one rank") == 1, output
    assert "srun --mpi=" in output
    assert not (tmp_path / "run").exists()


def test_a_rank_that_is_killed_ends_the_job(
    slurm: VirtualSlurm, flavour: str, tmp_path: Path
) -> None:
    program = tmp_path / "dies.py"
    program.write_text(
        "from dist_ml.launch.mpi_installation import select_library; select_library()\n"
        "from mpi4py import MPI; import os, signal; comm = MPI.COMM_WORLD; comm.Barrier()\n"
        "if comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "comm.Barrier()\n"
    )
    script = tmp_path / "job.sh"
    text = (
        Path(SCRIPT).read_text().replace('-m dist_ml train --config-name "$config"', str(program))
    )
    assert str(program) in text
    script.write_text(text)
    status, output = slurm.submit(
        "--nodes=2", "--ntasks=4", str(script), environment=variables(flavour)
    )
    assert status != 0, output


def test_a_python_that_is_missing_is_named(slurm: VirtualSlurm, tmp_path: Path) -> None:
    status, output = slurm.submit(
        "--ntasks=1", SCRIPT, environment={"DIST_ML_PYTHON": "/nowhere/python"}
    )
    assert status == 2, output
    assert "/nowhere/python" in output


def test_stale_segments_are_removed_on_every_node(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """A requeued job would find the segment of its first life, and MPICH would fail on it."""
    # the time of change can't be set back
    old = "touch --date=yesterday /dev/shm/mpich_shm_0_0; sleep 2.1"
    everywhere = [
        f"--nodes={slurm.num_nodes}",
        f"--ntasks={slurm.num_nodes}",
        "--ntasks-per-node=1",
    ]
    slurm.client("srun", *everywhere, "sh", "-c", old)
    status, output = slurm.submit(
        f"--nodes={slurm.num_nodes}", SCRIPT, "no-such-config", environment=variables("mpich")
    )
    assert status != 0, output
    assert "mpich_shm" not in slurm.client("srun", *everywhere, "ls", "/dev/shm")
