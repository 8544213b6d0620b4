"""Processes that end when they should: with their job, at the time limit, and with whoever started
them.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from dist_ml.launch import stacks

Handler = Callable[[int, FrameType | None], object]

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.02


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
def handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Within the block these signals call `handler`, and afterwards what they did before. Only the
    main thread can arrange it; elsewhere whoever owns that one decides.
    """
    before: dict[signal.Signals, object] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():  # None: of C code, which can't be had back
            signal.signal(number, signal.SIG_DFL if former is None else former)  # type: ignore[arg-type]


def raise_exit(number: int, _frame: FrameType | None) -> None:
    """A handler after which `finally` clauses run."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit(143)`. A handler that the program has set already
    is left in place: it knows better what to raise.
    """
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with handled(raise_exit, *([signal.SIGTERM] if is_free else [])):
        yield


@contextlib.contextmanager
def passed_on(
    number: signal.Signals, processes: Sequence[subprocess.Popen[bytes]]
) -> Iterator[None]:
    """Within the block a signal to this process is one to `processes`, as they are then, beside
    what a handler makes of it.
    """
    before = signal.getsignal(number)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)
        if callable(before):
            before(number, frame)

    with handled(pass_on, number):
        yield


@contextlib.contextmanager
def signals_wait() -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM are only noted, in the list that it gives, so that an
    impatient second Ctrl-C can't stop a clean-up half-way; after it they do what they do.
    """
    came: list[int] = []
    try:
        with handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
            yield came
    finally:
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def ask_to_stop(
    leaders: Sequence[subprocess.Popen[bytes]], mark: str, seconds: float, further: Sequence[int]
) -> None:
    """SIGTERM to the ranks of a job, and wait until its `leaders` have ended: at most `seconds`,
    and no longer once `further` holds a signal.

    Not to an mpiexec: Open MPI's kills its ranks one second after it was told to end.
    """
    for pid in ranks_of(mark).values() or [each.pid for each in leaders if each.poll() is None]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while None in [each.poll() for each in leaders] and time.monotonic() < deadline:
        if further:
            return
        time.sleep(_POLL_SECONDS)


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
        time.sleep(_POLL_SECONDS)
    for leader in leaders:  # without a /proc, the leaders' sessions are all that can be found
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


def ranks_of(mark: str) -> dict[int, int]:
    """The process of each rank of a marked job on this machine, by the number that the job's
    launcher gave it. Of several that have a rank's number its own is the oldest.
    """
    found: dict[int, int] = {}
    for pid in sorted(marked(mark)):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            # What this process has, too, numbers this process: srun's, around a launcher.
            own = {
                name: text
                for name, _, text in (word.partition("=") for word in words)
                if os.environ.get(name) != text
            }
            if stacks.has_rank(own):
                found.setdefault(stacks.rank(own), pid)
    return found
