"""Ranks die by SIGKILL, at random moments and at bad ones, and the others go on without them: the
run ends as if nothing had been.
"""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.launch import mpi_installation, mpiexec
from dist_ml.train import stored_run
from dist_ml.train.run import train_run
from tests.configurations import train_config

STEPS, LIMIT_SECONDS, TOLERANCE = 60, 10.0, 1e-5  # weights: ten times that
OVERRIDES = (
    "data=synthetic", "data.num_train=320", "data.num_test=32", "batch_size=16", "epochs=3",
    "model.hidden=[40,30]", "model.dropout=0.1", "optimizer=adamw", "log_every=1",
)  # fmt: skip
# A rank that is killed some seconds after a call of `what` has begun, its `at`-th; what it maps of
# /dev/shm is written down first.
PROGRAM = """
import itertools, json, os, signal, sys, threading
from dist_ml.cli import train
from dist_ml.launch import stacks
from dist_ml.train.checkpoints import Checkpoints
from dist_ml.train.evaluator import Evaluator
from dist_ml.train.step import TrainStep

CALLS = {"step": (TrainStep, "run"), "evaluate": (Evaluator, "evaluate"),
         "save": (Checkpoints, "save")}

def dying(owner, name, at, seconds):
    call, calls = getattr(owner, name), itertools.count()
    def wrapped(*args, **keys):
        if next(calls) == at:
            with open("mapped", "a") as file, open("/proc/self/maps") as maps:
                file.writelines(line for line in maps if "/dev/shm/" in line)
            threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return call(*args, **keys)
    setattr(owner, name, wrapped)

plan = json.loads(sys.argv[1]).get(str(stacks.rank(os.environ)))
if plan:
    dying(*CALLS[plan[0]], *plan[1:])
sys.exit(train.main(sys.argv[2:]))
"""
BITWISE = "in a fixed order"
THREAD = ("allreduce.overlap=thread", "allreduce.bucket_bytes=4096")
POLL = ("allreduce.overlap=poll", "allreduce.bucket_bytes=4096")
EXCHANGES: dict[str, tuple[str, ...]] = {
    "blocking": (),
    "shared memory on a thread": ("allreduce=shared_memory", *THREAD),
    "hierarchical, polled": ("allreduce=hierarchical", *POLL),
    BITWISE: ("reproduce=bitwise", "reproduce.shards=12"),
    "ring, checked": ("allreduce=ring", "comm.checked=true"),
}
random_moments = random.Random(1)


def at_random() -> list[object]:
    """A moment in a random step."""
    return ["step", random_moments.randrange(STEPS), random_moments.uniform(0, 0.004)]


# Who dies when.
PLANS: dict[str, dict[int, list[object]]] = {
    "one": {2: at_random()},
    "two at once, the first rank too": {0: ["step", 31, 0.0], 2: ["step", 31, 0.0]},
    "in an evaluation": {0: ["evaluate", 1, 0.0]},
    "one after the other": {1: at_random(), 3: at_random()},
    "in a save": {3: ["save", 2, 0.0]},
}
RUNS = list(zip(itertools.cycle(EXCHANGES), PLANS, strict=False))


@pytest.fixture
def undisturbed(exchange: str, tmp_path: Path) -> Path:
    """The same run on one rank."""
    folder, threads = tmp_path / "undisturbed", torch.get_num_threads()
    own = EXCHANGES[exchange] if exchange == BITWISE else ()
    torch.set_num_threads(1)  # as each rank has
    train_run(train_config(*OVERRIDES, *own, f"folder={folder}"), Communicator(Loopback()))
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(("exchange", "plan"), RUNS)
def test_the_others_go_on(exchange: str, plan: str, tmp_path: Path, undisturbed: Path) -> None:
    if "openmpi" not in [installation.name for installation in mpi_installation.available()]:
        pytest.skip("Open MPI is not installed")
    folder, dying = tmp_path / "run", PLANS[plan]
    (tmp_path / "program.py").write_text(PROGRAM)
    saved = ("checkpoint.every=7", "checkpoint.asynchronous=true") if plan == "in a save" else ()
    completed = mpiexec.run(
        ["env", "-C", str(tmp_path), sys.executable, "program.py", json.dumps(dying), *OVERRIDES,
         f"folder={folder}", "fault.recover=shrink", *EXCHANGES[exchange], *saved],
        4,
        "openmpi",
        time_limit_seconds=150.0,
        capture=True,
        environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        survive=True,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-3000:] + completed.stacks
    for line in (tmp_path / "mapped").read_text().splitlines():
        assert not Path(line.split(maxsplit=5)[5]).exists(), line
    tolerance = 0.0 if exchange == BITWISE else TOLERANCE
    run, whole = stored_run.read(folder), stored_run.read(undisturbed)
    assert run.status == "finished", run.problem
    assert run.summary["ranks"] == 4 - len(dying)
    recoveries = run.summary["recoveries"]
    assert len(recoveries) == len(dying)
    assert all(recovery["seconds"] < LIMIT_SECONDS for recovery in recoveries), recoveries
    assert "was lost in step" in (folder / "log" / "rank-0000.log").read_text()
    for line, expected in zip(run.steps, whole.steps, strict=True):
        assert line["step"] == expected["step"]
        key = "loss" if "loss" in expected else "test_loss"
        assert line[key] == pytest.approx(expected[key], abs=tolerance, rel=tolerance)
    weights, expected = (
        load_file(path / "checkpoints" / "model.safetensors") for path in (folder, undisturbed)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=10 * tolerance)
