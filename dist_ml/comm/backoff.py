"""How to wait: look again at once, then sleep. A rank that only waits leaves its core to whoever
computes, or carries the bytes.

MPI's own waits look without a pause. Where a rank's exchange runs beside its backward pass, or
ranks outnumber cores, that takes the core from the work being waited for: four ranks on two cores
over a 1 Gbit/s network spent 3 times the processor time.
"""

import ctypes
import os
import sys
import time

SPIN_SECONDS = 0.0002  # a message inside a node, or one over a fast network, has come by then
SHARE = (
    1 / 8
)  # of the time waited so far that a pause may take: no wait is much longer than it must be
PAUSE_SECONDS = 0.0002  # at most: the buffers of a TCP socket last longer than that


_PR_SET_TIMERSLACK = 29  # linux/prctl.h


def fine_timers() -> None:
    """Have this thread, and those that it starts, wake when they asked to: Linux lets a sleep last
    50 µs longer, to wake several at once, and a pause here is little more than that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


class Backoff:
    """What to do between two looks at something that is awaited."""

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = time.monotonic()

    def between_looks(self) -> float:
        """Offer the processor to others, and after a while sleep. Seconds waited so far."""
        waited = time.monotonic() - self._start
        if waited < SPIN_SECONDS:
            os.sched_yield()
        else:
            time.sleep(min(PAUSE_SECONDS, SHARE * waited))
        return waited
