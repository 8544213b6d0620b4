"""Processes that end when they should: with their job, at the time limit, and with whoever started
them.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1


def end_with_parent(death_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What a child runs before its program, so that it gets `death_signal` when its parent dies;
    None where only Linux can.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(
        None, use_errno=True
    ).prctl  # looked up before the fork: little is safe after it

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)

    return in_child


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit(143)`, so that `finally` clauses run; only the
    main thread can arrange it.

    A handler that the program has set already is left in place: it knows better what to raise.
    """

    def raise_exit(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    try:
        before = signal.signal(signal.SIGTERM, raise_exit)
    except ValueError:  # not the main thread: whoever owns that one decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def passed_on(
    number: signal.Signals, processes: Sequence[subprocess.Popen[bytes]]
) -> Iterator[None]:
    """Within the block a signal to this process is one to `processes`, as they are then; only the
    main thread can arrange it.
    """

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(signum)

    try:
        before = signal.signal(number, pass_on)
    except ValueError:  # not the main thread: whoever owns that one decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM are held back, so that an impatient second Ctrl-C can't
    stop a clean-up half-way.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_job(
    leaders: Sequence[subprocess.Popen[bytes]], mark: str, polite_seconds: float = 5.0
) -> None:
    """End `leaders`, then every process whose environment holds `mark` (NAME=value), whatever
    session or parent it has now.

    A leader that still runs is asked first (SIGTERM: mpiexec then ends its ranks); after
    `polite_seconds` all are killed.
    """
    for leader in leaders:
        if leader.poll() is None:
            leader.terminate()
    wait_for(leaders, polite_seconds)
    deadline = time.monotonic() + 5.0
    while (left := marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for (
        leader
    ) in leaders:  # where there is no /proc, the leaders' sessions are all that can be found
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
    wait_for(leaders, 5.0)


def wait_for(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until all have ended, at most `seconds` together."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def marked(mark: str) -> list[int]:
    """The processes of this machine that were started with `mark` in their environment and have not
    ended.
    """
    wanted, found = mark.encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]
