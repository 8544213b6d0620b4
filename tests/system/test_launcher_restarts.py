"""`dist-ml launch --restarts`, from the outside: the ranks of a long run are killed, and killed
again.
"""

import os
import signal
import time
import uuid
from pathlib import Path

from test_told_runs import OVERRIDES, launched

from dist_ml.bench.killed_run import num_starts
from dist_ml.checkpoint.folder import committed
from dist_ml.launch import process

LONG = ("folder=run", "checkpoint.every=5", *OVERRIDES, "epochs=100000")


def test_a_killed_run_is_started_again_until_no_restart_is_left(
    flavour: str, tmp_path: Path
) -> None:
    mark = f"DIST_ML_TEST={uuid.uuid4().hex}"
    run, deadline = tmp_path / "run", time.monotonic() + 90
    with launched(mark, flavour, tmp_path, "--restarts", "1", "train", *LONG) as launcher:
        for life in (1, 2):
            while num_starts(run) < life or not committed(run / "checkpoints"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.ranks_of(mark)[2 - life], signal.SIGKILL)
        output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode in (9, 137), output
    assert output.count("restart, 0 left: the job ended with status") == 1
    assert output.count("goes on from step") == 1
    assert "no restart is left of 1; resume=auto goes on in run from step" in output
