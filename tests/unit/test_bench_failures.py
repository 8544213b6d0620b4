"""The benchmark of failures: what it makes of how jobs end. Real ones: tests/test_hangs.py."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_ml.bench import failures
from dist_ml.bench.failures import Case, Ended
from dist_ml.bench.faults import EXCHANGES, FAULTS, Call, leave_out
from dist_ml.bench.form import Result
from dist_ml.bench.worlds import ThisWorld
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError
from dist_ml.flight import record_file
from dist_ml.flight.recorder import ENDED, Recorder
from dist_ml.launch.job import Completed
from tests.unit.bench_worlds import bench_config, failed, only_finite

WELL = Ended(Case("dense", "raise", "mpich"), 4.0, True, True, True, None, 0)
LATER = replace(WELL, case=Case("dense", "stop", "mpich"), seconds=12.9)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, []),
        ({"in_time": False}, ["jobs that ended by their time limit"]),
        ({"named": False}, ["jobs that don't name the rank, once"]),
        ({"diagnosed": False}, ["jobs whose records don't tell rank and call"]),
        ({"diagnosed": None, "torch_agrees": True}, []),
        ({"torch_agrees": False}, ["jobs whose records torch reads otherwise"]),
        ({"left": 1}, ["processes and segments left"]),
        ({"seconds": 15.1}, ["seconds to the end, raise or kill"]),
    ],
)
def test_what_does_not_end_well_is_seen(change: dict[str, Any], name: list[str]) -> None:
    config = bench_config("failures")
    ended = [replace(WELL, **change), LATER]
    made = failures.checks(ended, config)
    assert failed(made) == name
    only_finite(Result("failures", [failures.record(each) for each in ended], made))


def test_a_late_end_is_seen() -> None:
    made = failures.checks([replace(LATER, seconds=13.1)], bench_config("failures"))
    assert failed(made) == ["seconds to the end, beyond the watchdog's limit"]


HOST = socket.gethostname()
STOPPED = f"""error on rank 0 of 3 on {HOST}: step 4 has lasted 3 s: rank 2 never came to allreduce
in which ranks 0 and 1 wait; its process 77 on {HOST} is stopped (SIGSTOP, or a debugger)"""
TRUNCATED = "Abort(1) on node 2 (rank 2 in comm 480): Fatal error in Allreduce:\nMessage truncated"


@pytest.mark.parametrize(
    ("fault", "stderr", "named"),
    [
        ("raise", f"error on rank 2 of 3 on {HOST}: ValueError: a bug", True),
        ("raise", f"error on rank 1 of 3 on {HOST}: ValueError: a bug", False),
        ("kill", f"rank 2 on {HOST} (process 7) ended first: Killed (signal 9)", True),
        ("kill", "a process was killed", False),
        ("stop", STOPPED, True),
        ("stop", STOPPED.replace("rank 2", "rank 1"), False),
        ("stop", STOPPED + STOPPED, False),
        ("leave_out", f"rank 2 on {HOST} (process 7) left out allreduce", True),
        ("leave_out", TRUNCATED, True),
        ("leave_out", TRUNCATED.replace("node 2", "node 0"), False),
    ],
)
def test_the_rank_is_named_once(fault: str, stderr: str, named: bool) -> None:
    done = Completed(1, "", stderr, False, "")
    assert failures.is_named(done, fault, 2) == named
    assert not failures.is_named(replace(done, returncode=0), fault, 2)


def test_records_are_judged(tmp_path: Path) -> None:
    """Rank 2 never comes to the second allreduce."""
    case, log = Case("dense", "sleep", "mpich"), tmp_path / "run" / "log"
    done = Completed(1, "", "", False, "")
    by_mpich = replace(done, stderr=TRUNCATED)
    assert failures.judge(tmp_path, case, done, 2) == (False, None)
    assert failures.judge(tmp_path, case, by_mpich, 2) == (None, None)
    assert failures.judge(tmp_path, case._replace(fault="kill"), done, 2) == (None, None)
    log.mkdir(parents=True)
    for rank in range(3):
        recorder = Recorder(rank, 3)
        recorder.folder, group = log, recorder.group("data", range(3), rank)
        for number in range(2 - (rank == 2)):
            record = group.collective("allreduce", "float32", 8, "sum", depth=1)
            record[ENDED] = record[ENDED] if number else 1
        record_file.write(recorder, "a test")
    assert failures.judge(tmp_path, case, done, 2)[0] is True
    assert failures.judge(tmp_path, case, done, 2)[1] in (True, None)  # torch may have no analyser
    assert failures.judge(tmp_path, case, done, 1)[0] is False
    assert failures.judge(tmp_path, case._replace(exchange="overlapped"), done, 2)[0] is False


class Counted:
    calls = 0

    def call(self, by: int) -> int:
        Counted.calls += by
        return by


def test_one_call_is_left_out() -> None:
    world = Communicator(Loopback())
    leave_out(world, Call(Counted, "call", lambda _, by: -by))
    assert [Counted().call(3) for _ in range(3)] == [-3, 3, 3]
    assert Counted.calls == 6


def test_every_exchange_has_a_call_to_leave_out() -> None:
    assert {*bench_config("failures").faults} == {*FAULTS}
    assert {*bench_config("failures").exchanges} == {*EXCHANGES}
    for exchange in EXCHANGES.values():
        assert callable(getattr(exchange.left_out.owner, exchange.left_out.method))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("faults=[explode]", "faults"),
        ("exchanges=[smoke]", "exchanges"),
        ("ranks=2", "must be 3 or more"),
        ("step_limit_seconds=0", "must be above 0"),
        ("time_limit_seconds=3", "must be above 0, and below"),
    ],
)
def test_what_cannot_be_started_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench_config("failures", override)


def test_ranks_that_were_started_are_refused() -> None:
    with pytest.raises(ConfigError, match="without mpiexec"):
        failures.run(bench_config("failures"), ThisWorld(Communicator(Loopback()), {}))
