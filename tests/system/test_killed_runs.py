"""Runs that are killed at random, again and again, end like one that wasn't: SIGKILL, and signals
that ask.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dist_ml.bench.killed_run import steps_gone_on_from
from dist_ml.cli import restarts
from dist_ml.launch import mpiexec
from dist_ml.launch.job import Completed
from dist_ml.train import stored_run
from dist_ml.train.stop_signals import STOPPED

KILLS = 5
REPOSITORY = Path(__file__).parents[2]
TIMES = ("seconds", "samples_per_second", "communication_share", "traffic")

# One process is forked for each life of the run, which kills itself before the n-th step or the
# n-th operation on files that it makes, mostly within a save; from a seed. By then a checkpoint is
# committed: a save has fewer than 30 operations, and that of step 6 waits for that of step 3.
FORKING = """
import os, random, signal, sys
from dist_ml.checkpoint.files import Files
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.train.run import train_run
from dist_ml.train.step import TrainStep
from tests.unit.train_worlds import changed

def kill_at(number, of, names):
    left = [number]
    def counted(call):
        def method(*arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)
        return method
    for name in names:
        setattr(of, name, counted(getattr(of, name)))

OPERATIONS = "make_folder", "create", "write", "sync", "sync_folder", "rename", "remove_file"
killed, whole, seed, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
checkpoint = CheckpointConfig(3, asynchronous=bool(seed % 2))
random.seed(seed)
for life in range(kills + 2):
    folder = killed if life <= kills else whole
    config = changed(folder=folder, epochs=24, resume="auto", checkpoint=checkpoint)
    at = random.choice([(random.randrange(8, 12), TrainStep, ["run"]),
                        (random.randrange(30, 75), Files, OPERATIONS)])
    child = os.fork()
    if child == 0:
        if life < kills:
            kill_at(*at)
        train_run(config, Communicator(Loopback()))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if life < kills else 0), (life, at, status)
"""

# A rank that kills or signals itself before a step, given as `RANK:STEP:SIGNAL`; with `WHOLE` the
# same run is made before, undisturbed, in that folder.
RANK = """
import os, sys
from dist_ml.cli import arguments, ranks, train
from dist_ml.launch import stacks
from dist_ml.train import logs
from dist_ml.train.step import TrainStep
from dist_ml.train.stop_signals import StopSignals

rank, at, number = map(int, os.environ["WHO"].split(":"))
run = TrainStep.run
def step(self, *batch):
    if self.num_steps == at and stacks.rank(os.environ) == rank:
        os.kill(os.getpid(), number)
    return run(self, *batch)

def body(world):
    folders = [os.environ["WHOLE"]] if "WHOLE" in os.environ else []
    for folder in [*folders, os.environ["KILLED"]]:
        TrainStep.run = step if folder == os.environ["KILLED"] else run
        words = [*sys.argv[1:], f"folder={folder}"]
        request = arguments.parse(words, "test", config_name="train")
        with StopSignals() as signals:
            status = train.train(world, request, signals)
        logs.stop()
    return status

sys.exit(ranks.run_on_ranks(body))
"""
OVERRIDES = (
    "checkpoint.every=4", "checkpoint.asynchronous=true", "epochs=2",
    "data=synthetic", "data.num_train=320", "data.num_test=32", "batch_size=16", "log_every=1",
    "model.hidden=[8,6]", "model.dropout=0.1",
)  # fmt: skip


def told(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics without times, of a run that has finished."""
    found = stored_run.read(folder)
    assert found.status == "finished", found.problem
    return [{key: line[key] for key in line if key not in TIMES} for line in found.steps]


def assert_same(folder: Path, whole: Path) -> None:
    assert told(folder) == told(whole)
    one, other = (
        safetensors.torch.load_file(path / "checkpoints" / "model.safetensors")
        for path in (folder, whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_it_ends_like_one_that_was_not(seed: int, tmp_path: Path) -> None:
    """Every loss and weight to the last bit, and each life goes on from a committed checkpoint."""
    folders = [str(tmp_path / name) for name in ("killed", "whole")]
    subprocess.run(
        [sys.executable, "-c", FORKING, *folders, str(seed), str(KILLS)],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests/unit"},
    )
    starts = steps_gone_on_from(tmp_path / "killed")
    assert len(starts) == KILLS
    assert starts == sorted(starts)
    assert all(step > 0 and step % 3 == 0 for step in starts), starts
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_ranks_are_killed_and_told_to_stop_and_go_on_bitwise(
    flavour: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One dies by SIGKILL, then the other, and each time the job is started again; one is asked,
    and all save and end with status 75, which nobody starts again; then they come to the end.
    """
    monkeypatch.delenv("MPI4PY_LIBMPI", raising=False)  # of another MPI that a test has chosen
    program = tmp_path / "program.py"
    program.write_text(RANK)
    # The save after step 8 waits for the one after step 4.
    at = random.Random(flavour).randrange(9, 14)
    ends: list[Completed] = []

    def start(words: Sequence[str], gone_seconds: float = 0.0) -> int:
        whole = {} if ends else {"WHOLE": str(tmp_path / "whole")}
        done = mpiexec.run(
            [sys.executable, str(program), *words],
            2,
            flavour,
            time_limit_seconds=60.0,
            capture=True,
            environment={
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(REPOSITORY),
                "WHO": [f"1:{at}:9", f"0:{at + 9}:9", f"1:{at + 18}:15", "0:-1:0"][len(ends)],
                "KILLED": str(tmp_path / "killed"),
                **whole,
            },
        )
        ends.append(done)
        return done.returncode

    words = [*OVERRIDES, f"folder={tmp_path / 'killed'}"]
    assert restarts.run(words, 3, start) == STOPPED, ends[-1].stderr
    assert len(ends) == 3
    assert "restart, 1 left: the job ended with status" in capsys.readouterr().err
    first, second = steps_gone_on_from(tmp_path / "killed")
    assert 4 <= first <= at <= second <= at + 9
    assert f"stopped by SIGTERM after step {at + 19}" in ends[-1].stdout
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["waited_seconds"] + summary["saved_in_seconds"] < 5
    assert start([*OVERRIDES, "resume=auto"]) == 0, ends[-1].stderr
    assert f"goes on from step {at + 19}" in ends[-1].stdout
    assert_same(tmp_path / "killed", tmp_path / "whole")
