"""Signals that tell a run to stop, without a run."""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from train_worlds import changed

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError
from dist_ml.launch.lead import lead_seconds, seconds_to_stop
from dist_ml.train import stop_signals
from dist_ml.train.run import train_run
from dist_ml.train.stop_signals import StopSignals

USR1, TERM = signal.SIGUSR1, signal.SIGTERM
# What stands for the end of the process ends the thread that asks for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """As in a process that begins, and not as in pytest's."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (USR1, TERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set where the process would have ended."""
    event = threading.Event()

    def end(status: int) -> None:
        assert status == 128 + TERM
        event.set()
        raise SystemExit  # of the thread

    monkeypatch.setattr(stop_signals.os, "_exit", end)
    return event


def test_further_signals_change_nothing() -> None:
    before = signal.getsignal(TERM)
    with StopSignals() as signals:
        signals.begin(True, False, 30.0)
        assert not signals.told()
        for number in (USR1, USR1, TERM, TERM):
            signal.raise_signal(number)
        assert (signals.told(), signals.name) == (True, "SIGUSR1")
    assert signal.getsignal(TERM) is before
    signal.raise_signal(USR1)  # MPI's end comes after the block


def test_a_rank_that_reaches_no_border_ends(ended: threading.Event) -> None:
    with StopSignals() as signals:
        signals.begin(True, False, 0.2)
        signal.raise_signal(TERM)
        assert not ended.wait(0.1)
        assert ended.wait(5)


@pytest.mark.parametrize("first", ["save", "signal"])
def test_a_save_is_not_cut_off(first: str, ended: threading.Event) -> None:
    with StopSignals() as signals:
        signals.begin(True, False, 0.1)
        if first == "signal":
            signal.raise_signal(TERM)
        with signals.saving():
            signal.raise_signal(TERM)
            assert not ended.wait(0.3)
        assert not ended.wait(0.05)
        assert ended.wait(5), "nor does the process hang after it"


def test_a_save_that_hangs_is_ended(
    ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_signals, "_LONGEST_SAVE_SECONDS", 0.2)
    with StopSignals() as signals:
        signals.begin(True, False, 0.1)
        with signals.saving():
            signal.raise_signal(TERM)
            assert ended.wait(5)


def test_a_run_that_is_not_saved_tells_once_that_it_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dist_ml"), "propagate", True)
    with StopSignals() as signals:
        signal.raise_signal(USR1)  # before anything is known
        signals.begin(False, True, 30.0)
        signal.raise_signal(USR1)
        assert not signals.told()
        for _ in range(2):
            signals.log_ignored()
    assert [record.getMessage()[:18] for record in caplog.records] == ["SIGUSR1 is ignored"]


def test_a_programs_own_handlers_are_left_to_it() -> None:
    seen: list[int] = []
    for number in (USR1, TERM):
        signal.signal(number, lambda number, _: seen.append(number))
    with StopSignals() as signals:
        signals.begin(False, True, 30.0)
        signal.raise_signal(TERM)
    signal.raise_signal(USR1)
    assert seen == [TERM, USR1]


@pytest.mark.parametrize("early", [True, False])
def test_sigterm_ends_a_run_that_is_not_saved(early: bool) -> None:
    def ended() -> None:
        with StopSignals() as signals:
            if early:
                signal.raise_signal(TERM)
            signals.begin(False, True, 30.0)
            signal.raise_signal(TERM)

    with pytest.raises(SystemExit) as caught:
        ended()
    assert caught.value.code == 143


def started(body: str) -> "subprocess.Popen[str]":
    """A process in the block of `signals`; it says when `body` begins."""
    program = "import ctypes, os, signal, sys, time\n"
    program += "from dist_ml.train.stop_signals import StopSignals\n"
    program += "with StopSignals() as signals:\n"
    program += "    signals.begin(True, False, 0.3); print('up', flush=True)\n"
    program += "".join(f"    {line}\n" for line in body.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_sigterm_is_heard_within_a_call_that_does_not_return() -> None:
    """A mutex that is locked twice: like a blocking MPI call, no signal interrupts it."""
    lock = "lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = ctypes.create_string_buffer(64)\n"
    process = started(f"{lock}lock(mutex); lock(mutex)")
    process.terminate()
    assert process.wait(5) == 143


def test_what_ends_a_forked_child_does_not_stop_the_run() -> None:
    forks = "child = os.fork()\n"
    forks += "if child == 0: time.sleep(20)\n"
    forks += "time.sleep(0.2); os.kill(child, signal.SIGTERM); status = os.waitpid(child, 0)[1]\n"
    forks += "time.sleep(0.1); sys.exit(3 if signals.told() else status)"
    assert started(forks).wait(10) == TERM


@pytest.mark.parametrize(
    ("text", "lead", "stop"), [("", None, 30.0), ("12.5", 12.5, 30.0), (" 120", 120.0, 120.0)]
)
def test_the_lead_is_seconds(
    text: str, lead: float | None, stop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIST_ML_LEAD_SECONDS", text)
    assert (lead_seconds(), seconds_to_stop()) == (lead, stop)
    monkeypatch.delenv("DIST_ML_LEAD_SECONDS")
    assert lead_seconds() is None


@pytest.mark.parametrize("text", ["2m", "nan", "inf", "-1"])
def test_a_lead_that_is_no_seconds_is_told_before_the_run(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIST_ML_LEAD_SECONDS", text)
    with pytest.raises(ConfigError, match=f"DIST_ML_LEAD_SECONDS={text} must be") as caught:
        train_run(changed(folder=str(tmp_path / "run")), Communicator(Loopback()))
    assert caught.value.agreed
    assert not (tmp_path / "run").exists()
