"""The limit of a step, who ends the job beyond it, and records on a signal."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import LIMIT_SECONDS
from dist_ml.config.fault import FaultConfig
from dist_ml.errors import ConfigError
from dist_ml.flight import on_signal, record_file
from dist_ml.flight.recorder import Recorder
from dist_ml.train import watchdog
from dist_ml.train.stop_signals import StopSignals
from dist_ml.train.watchdog import StepClock, Watchdog
from tests.thread_world import run_ranks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_limit_follows_the_median_step(clock: list[float]) -> None:
    steps = StepClock(FaultConfig(watchdog=10, watchdog_seconds=60))
    assert steps.limit() == LIMIT_SECONDS  # before the first step
    steps.begin()
    assert steps.limit() == 600
    for seconds in (100.0, 7.0, 9.0):
        steps.begin()
        clock[0] += seconds
        steps.end()
    assert steps.limit() == LIMIT_SECONDS
    steps.begin()
    assert steps.limit() == 90
    clock[0] += 5
    assert steps.lasts() == 5
    steps.skip(2)
    assert steps.lasts() == 3
    steps.rest()
    assert steps.lasts() == 0
    for _ in range(3):
        steps.begin()
        clock[0] += 1
        steps.end()
    steps.begin()
    assert steps.limit() == 60  # 4 s x 10 are less than the least


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"watchdog": -1.0}, "watchdog=-1 must be above 1"),
        ({"watchdog": 1.0}, "or 0 for no limit"),
        ({"watchdog": float("inf")}, "watchdog=inf must be"),
        ({"watchdog_seconds": 0.0}, "watchdog_seconds=0 must be above 0"),
    ],
)
def test_limits_that_are_none(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FaultConfig(**values)


def test_one_rank_ends_the_job_and_names_the_one_that_did_not_come(tmp_path: Path) -> None:
    """Rank 1 does not come to the allreduce until rank 0 has ended the job."""
    told: list[tuple[int, str]] = []
    ended = threading.Event()
    config = FaultConfig(watchdog=2, watchdog_seconds=0.3)

    def body(world: Communicator) -> None:
        def end(message: str) -> None:
            told.append((world.rank, message))
            ended.set()

        world.transport.end_stuck = end  # type: ignore[method-assign]
        world.recorder.folder = tmp_path
        with Watchdog(config, world) as guard:
            guard.begin(0)
            guard.end()
            guard.begin(1)
            if world.rank == 1:
                assert ended.wait(10.0)
            world.allreduce(torch.ones(5))
            guard.end()

    run_ranks(2, body)
    ((_, words),) = told
    assert words.startswith("step 1 has lasted 0.")
    assert "0.3 s are the limit" in words
    assert "rank 1 on" in words
    assert "never came to allreduce sum float32[5] (number 1 of data 0-1 #1)" in words
    assert sorted(record_file.read_folder(tmp_path)) == [0, 1]


def test_no_limit_no_thread(tmp_path: Path) -> None:
    def body(world: Communicator) -> None:
        with Watchdog(FaultConfig(watchdog=0, watchdog_seconds=0.1), world) as guard:
            guard.begin(0)
            assert "watchdog" not in [thread.name for thread in threading.enumerate()]
            time.sleep(0.15)

    run_ranks(2, body)
    assert record_file.files_in(tmp_path) == []


def test_a_process_that_the_signal_would_end_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "10"]) as process:
        assert on_signal.tell([process.pid]) == 0
        process.terminate()
        assert process.wait(5.0) == -signal.SIGTERM


def test_a_signal_has_the_record_written(tmp_path: Path) -> None:
    recorder = Recorder(0, 2)
    recorder.folder = tmp_path
    before = signal.getsignal(on_signal.DUMP)
    with StopSignals() as signals:
        signals.on(on_signal.DUMP, lambda: record_file.write(recorder, "told"))
        assert on_signal.tell([os.getpid()]) == 1
        deadline = time.monotonic() + 5.0
        while not record_file.files_in(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert record_file.read_folder(tmp_path)[0].reason == "told"
    assert signal.getsignal(on_signal.DUMP) is before
