"""How failures on ranks end. What MPI does at an abort is tested with real ranks in
tests/test_failing_worlds.py.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_ml.cli import main, ranks, terminal
from dist_ml.comm import mpi
from dist_ml.comm.peer_monitor import Peer, this_process
from dist_ml.errors import DataError, MachineError, NonFiniteError
from dist_ml.flight.recorder import Recorder
from dist_ml.train import logs


class Aborted(BaseException):
    """Instead of the end of all processes."""


class FakeTransport:
    """Of a rank that sees `peers` on its node."""

    def __init__(self, peers: tuple[Peer, ...]) -> None:
        self.peers = peers


class FakeWorld:
    """One rank's view of several."""

    def __init__(self, rank: int, size: int, peers: tuple[Peer, ...] = ()) -> None:
        self.rank, self.size = rank, size
        self.transport = FakeTransport(peers)
        self.recorder = Recorder(rank, size)

    def abort(self, status: int) -> None:
        raise Aborted(status)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "log").mkdir()
    yield tmp_path
    logs.stop()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the world that `run_on_ranks` finds."""
    monkeypatch.setattr(ranks, "_LONGEST_WAIT_SECONDS", 0.0)
    return lambda rank, size: monkeypatch.setattr(mpi, "world", lambda: FakeWorld(rank, size))


def raising(error: BaseException) -> Callable[[Any], int]:
    def body(world: Any) -> int:
        raise error

    return body


def agreed(error: DataError) -> DataError:
    error.agreed = True
    return error


def test_status_of_the_body_is_the_status() -> None:
    assert ranks.run_on_ranks(lambda world: world.size + 3) == 4


def test_alone_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks.run_on_ranks(raising(NonFiniteError("loss is nan; lower lr"))) == 3
    assert capsys.readouterr().err == "error: loss is nan; lower lr\n"


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks.run_on_ranks(raising(DataError("bad")), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "shown"), [(0, "error: bad file\n"), (2, "")])
def test_an_agreed_error_is_told_by_rank_0(
    rank: int, shown: str, started: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    started(rank, 3)
    assert ranks.run_on_ranks(raising(agreed(DataError("bad file")))) == 2
    assert capsys.readouterr().err == shown


def test_an_error_of_one_rank_aborts(
    started: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    started(2, 3)
    with pytest.raises(Aborted, match="2"):
        ranks.run_on_ranks(raising(DataError("bad file")))
    told = capsys.readouterr().err
    assert told.startswith("error on rank 2 of 3 on ")
    assert told.endswith(": bad file\n")


def test_an_exception_shows_its_traceback_and_is_logged(
    log: Path, started: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    started(1, 2)
    logs.start(log, 1)
    with pytest.raises(Aborted, match="1"):
        ranks.run_on_ranks(raising(ValueError("a bug")))
    told = capsys.readouterr().err
    assert told.count("Traceback") == 1
    assert "error on rank 1 of 2 on " in told
    assert "ValueError: a bug" in (log / "log" / "rank-0001.log").read_text()
    failure = logs.first_failure(log)
    assert failure is not None
    assert failure.startswith("rank 1 on ")
    assert failure.endswith(": ValueError: a bug")


def test_the_second_rank_to_fail_is_silent(
    log: Path, started: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    started(1, 2)
    logs.start(log, 0)
    assert logs.record_failure(ValueError("first"))
    logs.start(log, 1)
    with pytest.raises(Aborted):
        ranks.run_on_ranks(raising(ValueError("second")))
    assert capsys.readouterr().err == ""
    assert "ValueError: second" in (log / "log" / "rank-0001.log").read_text()
    assert str(logs.first_failure(log)).endswith("first")


def test_ctrl_c_is_said_once(
    started: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        started(rank, 2)
        with pytest.raises(Aborted, match=str(terminal.INTERRUPTED)):
            ranks.run_on_ranks(raising(KeyboardInterrupt()))
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


def test_no_world_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_world() -> None:
        raise MachineError("4 ranks were started, but joined no world")

    monkeypatch.setattr(mpi, "world", no_world)
    for rank in ("0", "1"):
        monkeypatch.setenv("PMI_RANK", rank)
        assert ranks.run_on_ranks(raising(AssertionError())) == 2
    assert capsys.readouterr().err == "error: 4 ranks were started, but joined no world\n"


def test_an_impossible_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", "ranks=3"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: ranks=3, but 1 rank was started; start 3 (dist-ml launch -n 3 train"
    )


def test_an_error_of_mpi_about_a_dead_rank_names_the_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "_LONGEST_WAIT_SECONDS", 0.0)
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    dead = this_process(1)._replace(pid=process.pid)
    monkeypatch.setattr(mpi, "world", lambda: FakeWorld(0, 2, (this_process(0), dead)))
    with pytest.raises(Aborted):
        ranks.run_on_ranks(raising(RuntimeError("process_vm_readv failed (errno 3)")))
    told = capsys.readouterr().err
    assert f"rank 1 (process {process.pid} on this node) died" in told
    assert "Traceback" not in told
