"""Lets communication go on while this rank multiplies: MPI makes no progress by itself, so a helper thread tests what is
pending.
"""

import threading
import time
from types import TracebackType
from typing import Self

from dist_ml.comm.request import Request

# Often enough to keep a 1 Gbit/s link busy from its socket buffers, and rarely enough to cost a thousandth of a core.
_PERIOD_SECONDS = 0.001


class Progress:
    """A context in which `hand_over`-ed requests progress in the background. The thread exists only while it is needed.

    Needs MPI's THREAD_MULTIPLE (mpi4py asks for it, and both wheels grant it). A request is touched by one thread at a time.
    """

    def __init__(self) -> None:
        self._pending: list[Request] = []
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = True
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def hand_over(self, requests: list[Request]) -> None:
        """Test these from now on, until `wait`."""
        if not requests:
            return
        with self._lock:
            self._pending += requests
        self._work.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gemm-progress", daemon=True)
            self._thread.start()

    def wait(self, requests: list[Request]) -> None:
        """Take them back, and block until they have completed."""
        with self._lock:
            self._pending = [request for request in self._pending if request not in requests]
        for request in requests:
            request.wait()

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                self._pending = [request for request in self._pending if not request.test()]
                idle = not self._pending
            if idle:
                self._work.clear()
                if not self._pending and not self._ended:
                    self._work.wait()
            else:
                time.sleep(_PERIOD_SECONDS)
