"""A host's link is cut in the middle of training: the job ends, and says which host it is. A job
that is stopped as a whole for as long goes on.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dist_ml.launch import mpiexec, process
from dist_ml.launch.emulated_network import EmulatedNetwork, missing
from dist_ml.launch.job import Completed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
HOSTS = 3
SOON_SECONDS = 15.0
START_SECONDS = 60.0
MARK = "DIST_ML_CUT"
EXCHANGES = {
    "dense": ["allreduce=native", "allreduce.overlap=none"],
    "overlapped": ["allreduce=ring", "allreduce.overlap=thread", "allreduce.bucket_bytes=100000"],
}


@pytest.fixture
def network() -> Iterator[EmulatedNetwork]:
    with EmulatedNetwork(HOSTS) as network:
        yield network


def train(
    network: EmulatedNetwork, flavour: str, run: Path, meanwhile: Callable[[], None], *own: str
) -> Completed:
    """A run of one rank a host; `meanwhile` is called once it has made some steps."""

    def act() -> None:
        deadline, metrics = time.monotonic() + START_SECONDS, run / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        meanwhile()

    settings = ["data=synthetic", "data.num_train=960", "batch_size=96", "model.hidden=[300]"]
    program = ["-m", "dist_ml", "train", f"folder={run}", *settings, *own]
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        done = mpiexec.run(
            [sys.executable, *program],
            HOSTS,
            flavour,
            network=network,
            capture=True,
            time_limit_seconds=START_SECONDS + 60,
            environment={
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
                MARK: run.name,
            },
        )
        acting.result()
    return done


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_job_ends_and_names_the_host(
    exchange: str, flavour: str, network: EmulatedNetwork, tmp_path: Path
) -> None:
    cut_at = []

    def cut() -> None:
        network.hosts[2].network(["ip", "link", "set", "eth0", "down"])
        cut_at.append(time.monotonic())

    done = train(network, flavour, tmp_path / "run", cut, *EXCHANGES[exchange], "epochs=100000")
    assert time.monotonic() - cut_at[0] < SOON_SECONDS, done
    assert done.returncode not in (0, 124)
    assert done.stderr.count("error on rank") == 1, done.stderr
    by_others = "has not reached host h2 (rank 2) for 8 s"
    by_itself = "host h2 (rank 2) has reached no other host for 8 s"
    assert by_others in done.stderr or by_itself in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_is_stopped_as_a_whole_goes_on(
    flavour: str, network: EmulatedNetwork, tmp_path: Path
) -> None:
    def suspend() -> None:
        ranks = process.ranks_of(f"{MARK}=suspended").values()
        for number, seconds in ((signal.SIGSTOP, 5.0), (signal.SIGCONT, 0.0)):
            for pid in ranks:
                os.kill(pid, number)
            time.sleep(seconds)
        assert len(ranks) == HOSTS

    run = tmp_path / "suspended"
    done = train(network, flavour, run, suspend, "epochs=30", "fault.unreachable_seconds=2")
    assert done.returncode == 0, done
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
