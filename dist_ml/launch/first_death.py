"""Which rank of a job was the first to go: launchers name a process, or nobody.

Looked for among the processes that carry the job's mark and a rank's number in their environment,
and waited for by process descriptors, which tell at once. Linux only; elsewhere nothing is told.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time

from dist_ml.launch import process

_FIRST_LOOK_SECONDS = 0.3  # then twice as long each time, until two looks find the same ranks
_LONGEST_WAIT_SECONDS = 0.5
_FATAL = frozenset(
    int(number)
    for number in (
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGKILL,
        signal.SIGSEGV,
    )
)


def fatal_signal(exit_status: int) -> int | None:
    """The signal that has killed a rank of a job with this status; None where none has."""
    number = exit_status - 128 if exit_status > 128 else exit_status  # MPICH gives the signal
    return number if number in _FATAL else None


class FirstDeath:
    """A thread that knows a job's ranks and notes which of them ends first."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._ranks: dict[int, int] = {}  # rank by process
        self._first: int | None = None  # a process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="first-death", daemon=True)
        if sys.platform.startswith("linux"):
            self._thread.start()

    def close(self) -> None:
        """End the thread; what it knows stays."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LONGEST_WAIT_SECONDS + 1)

    def in_words(self, exit_status: int) -> str:
        """The rank that was killed, for a job that ended with `exit_status`; empty where no signal
        ended it, or where several ranks went at the same moment.
        """
        number = fatal_signal(exit_status)
        if number is None or self._first is None:
            return ""
        rank = self._ranks[self._first]
        what = signal.strsignal(number) or "killed"
        return (
            f"rank {rank} on {socket.gethostname()} (process {self._first}) ended first: {what} "
            f"(signal {number})\n"
        )

    def _watch(self) -> None:
        descriptors: dict[int, int] = {}  # process by descriptor
        poll = select.poll()
        wait, look_at, is_complete = _FIRST_LOOK_SECONDS, time.monotonic(), False
        try:
            while not self._stop.is_set() and self._first is None:
                if not is_complete and time.monotonic() >= look_at:
                    known = len(self._ranks)
                    self._find(descriptors, poll)
                    is_complete = 0 < known == len(self._ranks)
                    wait, look_at = 2 * wait, time.monotonic() + wait
                ended = poll.poll(1000 * min(wait, _LONGEST_WAIT_SECONDS))
                if len(ended) == 1:
                    self._first = descriptors[ended[0][0]]
                elif ended:
                    return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _find(self, descriptors: dict[int, int], poll: "select.poll") -> None:
        for rank, pid in process.ranks_of(self._mark).items():
            if rank in self._ranks.values():
                continue
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
                descriptors[descriptor] = pid
                self._ranks[pid] = rank
                poll.register(descriptor, select.POLLIN)
