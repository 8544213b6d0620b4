"""Scripts of a user's own on real ranks: they train, and one rank's failure ends all of them."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from dist_ml.cli import hang
from dist_ml.launch.job import Command, Completed, run_all

EXAMPLES = Path(__file__).parents[1] / "examples"
TIME_LIMIT_SECONDS = 60.0
SLOW_START_SECONDS = 25.0
MPIS = pytest.mark.parametrize("mpi", ["mpich", "openmpi"])

FAILS = """
import dist_ml
mesh = dist_ml.init()
import torch
mesh.world.barrier()
if mesh.world.rank == 1:
    STATEMENT
mesh.world.allreduce(torch.ones(3))
mesh.world.allreduce(torch.ones(3))
"""


def launch(mpi: str, ranks: int, *program: str) -> Completed:
    """`dist-ml launch -n RANKS PROGRAM`, as a user types it."""
    options = ["launch", "-n", str(ranks), "--mpi", mpi, "--time-limit", str(TIME_LIMIT_SECONDS)]
    command = Command([sys.executable, "-m", "dist_ml", *options, *program], dict(os.environ))
    limit = TIME_LIMIT_SECONDS + 10
    return run_all([command], time_limit_seconds=limit, capture=True)[0]


@pytest.mark.parametrize(
    ("example", "ranks", "mpi"),
    [
        ("data_parallel.py", 1, "mpich"),
        ("data_parallel.py", 3, "openmpi"),
        ("ddp.py", 2, "mpich"),
        ("ddp.py", 2, "openmpi"),
        ("from_horovod.py", 2, "mpich"),
        ("sparse_cnn.py", 2, "openmpi"),
    ],
)
def test_an_example_trains_on_any_number_of_ranks(example: str, ranks: int, mpi: str) -> None:
    done = launch(mpi, ranks, "python", str(EXAMPLES / example))
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) on", done.stdout)]
    assert f"on {ranks} ranks" in done.stdout
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]


@MPIS
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise ValueError('no such file')", "rank 1 of 3 on .*: ValueError: no such file"),
        ("raise KeyboardInterrupt", ""),
        ("mesh.world.allreduce(torch.ones(3, dtype=torch.complex64))", "rank 1 of 3 on .*: "),
    ],
    ids=["error", "interrupt", "unsupported"],
)
def test_a_rank_that_fails_ends_the_others(
    statement: str, words: str, mpi: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILS.replace("STATEMENT", statement))
    start = time.monotonic()
    done = launch(mpi, 3, str(script))
    assert time.monotonic() - start < SLOW_START_SECONDS
    assert not done.timed_out
    assert done.returncode != 0
    assert re.search(words, done.stderr)


FLIGHT = """
import os, signal, sys, time
from pathlib import Path
import dist_ml, torch
mesh = dist_ml.init(flight=sys.argv[1])
pids = mesh.world.allgather_objects(os.getpid())
if mesh.world.rank == 1:
    time.sleep(0.5)  # until the others wait
    os.kill(pids[0], signal.SIGUSR2)
    record = Path(sys.argv[1], "flight-0000.json")
    while not record.exists():
        time.sleep(0.02)
    record.rename(record.with_name("told"))
    raise ValueError("a bug")
mesh.world.allreduce(torch.ones(3))
"""


@MPIS
def test_flight_records_of_a_script(
    mpi: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At SIGUSR2, in a blocking call, and when a rank fails; those of an earlier job are gone."""
    script, folder = tmp_path / "script.py", tmp_path / "records"
    script.write_text(FLIGHT)
    folder.mkdir()
    (folder / "flight-0007.json").write_text("{}")
    done = launch(mpi, 3, "python", str(script), str(folder))
    assert not done.timed_out
    assert "rank 1 of 3 on" in done.stderr
    assert json.loads((folder / "told").read_text())["reason"] == "SIGUSR2"
    assert hang.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"rank 1 .*never came to allreduce sum float32\[3\]", said), said


EARLY = """
import sys, torch, dist_ml
from dist_ml.comm import blocked_calls, peer_monitor
blocked_calls.ENDED_SECONDS = peer_monitor.ENDED_SECONDS = 3.0
mesh = dist_ml.init()
model = dist_ml.DataParallel(torch.nn.Linear(3, 2), mesh, allreduce=sys.argv[1])
for batch in range(3 - (mesh.world.rank == 1)):
    model(torch.ones(4, 3)).sum().backward()
"""


@pytest.mark.parametrize(
    ("allreduce", "mpi"),
    [("native", "mpich"), ("shared_memory", "mpich"), ("native", "openmpi"), ("ring", "openmpi")],
)
def test_a_rank_that_leaves_its_loop_early_ends_the_others(
    allreduce: str, mpi: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(EARLY)
    done = launch(mpi, 2, "python", str(script), allreduce)
    assert not done.timed_out
    assert done.returncode != 0
    assert "error on rank 0 of 2" in done.stderr
    assert "rank 1 has come to the end of its script while this rank waits" in done.stderr


LATE = """
import time, torch, dist_ml
from dist_ml.comm import blocked_calls, peer_monitor
blocked_calls.ENDED_SECONDS = peer_monitor.ENDED_SECONDS = 1.0
mesh = dist_ml.init()
mesh.world.allreduce(torch.ones(3))
if mesh.world.rank == 0:
    time.sleep(4)
    print("saved")
"""


def test_ranks_whose_script_is_over_wait_for_one_that_works_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LATE)
    done = launch("mpich", 3, "python", str(script))
    assert done.returncode == 0, done.stderr
    assert "saved" in done.stdout


def test_init_twice_and_a_mesh_that_does_not_fit(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import dist_ml\ndist_ml.init()\ndist_ml.init()\n")
    done = launch("mpich", 2, "python", str(script))
    assert done.returncode != 0
    assert "dist_ml.init() was called before" in done.stderr
    script.write_text("import dist_ml\ndist_ml.init(pipeline=3)\n")
    done = launch("mpich", 2, "python", str(script))
    assert done.returncode != 0
    assert done.stderr.count("3 does not divide the 2 ranks started") == 1


def test_a_program_that_is_not_there_is_told_before_any_rank_starts() -> None:
    done = launch("mpich", 2, "trian", "epochs=1")
    assert done.returncode == 2
    assert "trian is neither a dist-ml command (train, evaluate" in done.stderr


@MPIS
def test_a_project_of_ones_own_is_trained_by_the_whole_trainer(mpi: str, tmp_path: Path) -> None:
    """In a pipeline; then it has finished, and on one rank its weights load by their own names."""
    program = ["python", str(EXAMPLES / "own_project" / "main.py"), f"folder={tmp_path / 'run'}"]
    done = launch(mpi, 2, *program, "mesh.pipeline=2", "epochs=4", "resume=auto")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["num_steps"]) == ("finished", 80)
    assert summary["test_accuracy"] > 0.8
    weights = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / "model.safetensors")
    assert "residual1.layers.0.running_mean" in weights


def test_a_launcher_that_mpi_does_not_know_is_told_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import dist_ml\ndist_ml.init()\n")
    command = Command([sys.executable, str(script)], {**os.environ, "PMI_SIZE": "2"})
    done = run_all([command], time_limit_seconds=TIME_LIMIT_SECONDS, capture=True)[0]
    assert done.returncode == 1
    assert "2 ranks were started, but MPICH joined them into 2 worlds of one" in done.stderr


def test_a_product_of_shared_matrices_is_that_of_whole_ones() -> None:
    done = launch("openmpi", 3, "python", str(EXAMPLES / "gemm.py"))
    assert done.returncode == 0, done.stderr
    found = re.search(r"on 3 ranks: .* off by (\S+)", done.stdout)
    assert found is not None
    assert float(found[1]) < 1e-3


def test_a_dataset_of_ones_own_is_trained_on(tmp_path: Path) -> None:
    program = ["python", str(EXAMPLES / "own_dataset.py")]
    done = launch("mpich", 2, *program, f"folder={tmp_path / 'run'}", "epochs=2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["test_accuracy"] > 0.4


def test_the_scaling_study_starts_its_ranks() -> None:
    command = Command(
        [sys.executable, str(EXAMPLES / "scaling_study.py"), "1", "2"], {**os.environ}
    )
    done = run_all([command], time_limit_seconds=TIME_LIMIT_SECONDS, capture=True)[0]
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 ranks: \d+ samples a second, .* efficiency", done.stdout)
    assert "of the work is not shared out" in done.stdout


@pytest.mark.parametrize("example", ["ddp.py", "from_horovod.py"])
def test_a_script_moved_over_is_the_former_with_the_lines_that_are_shown(example: str) -> None:
    """What the guide's diff adds is in the example; what it takes away is not."""
    guide = (EXAMPLES.parent / "docs" / "library.md").read_text()
    code = {
        line.partition("  # ")[0].strip() for line in (EXAMPLES / example).read_text().splitlines()
    }
    (block,) = [
        each for each in re.findall(r"```diff\n(.*?)```", guide, re.DOTALL) if example in each
    ]
    added = [line[1:].strip() for line in block.splitlines()[2:] if line.startswith("+")]
    removed = [line[1:].strip() for line in block.splitlines()[2:] if line.startswith("-")]
    assert 0 < len(added) <= 10
    assert set(added) <= code
    assert not set(removed) & code
