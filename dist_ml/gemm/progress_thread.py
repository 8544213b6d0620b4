"""Lets communication go on while this rank multiplies: MPI makes no progress by itself, so a helper
thread tests what is pending.
"""

from __future__ import annotations  # planning needs no torch, so it is imported for types only

import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from dist_ml.comm.request import Request

# Tests cost processor time that products could have, so they are as rare as they may be: half as
# often whenever a wait found all arrived, twice as often whenever it did not. The longest keeps a 1
# Gbit/s link busy from its socket buffers.
_SHORTEST_SECONDS, _FIRST_SECONDS, _LONGEST_SECONDS = 0.0005, 0.001, 0.004


class ProgressThread:
    """A context in which polled requests progress in the background. The thread exists only while
    it is needed.

    Needs MPI's THREAD_MULTIPLE (mpi4py asks for it, and both wheels grant it). A request is touched
    by one thread at a time.
    """

    def __init__(self) -> None:
        self._pending: list[Request] = []
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._ended = False
        self._period = _FIRST_SECONDS
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def poll(self, requests: list[Request]) -> None:
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
        """Stop polling these, and block until they have completed."""
        with self._lock:
            self._pending = [request for request in self._pending if request not in requests]
        if not requests:
            return
        arrived = all(request.test() for request in requests)
        self._period = (
            min(_LONGEST_SECONDS, 2 * self._period)
            if arrived
            else max(_SHORTEST_SECONDS, self._period / 2)
        )
        for request in requests:
            request.wait()

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                # A test moves all that is under way, not only what it asks about: the oldest tells
                # when to ask about the next.
                while self._pending and self._pending[0].test():
                    self._pending.pop(0)
                idle = not self._pending
            if idle:
                self._work.clear()
                if not self._pending and not self._ended:
                    self._work.wait()
            else:
                time.sleep(self._period)
