"""How to wait: look again at once, then sleep. A rank that only waits leaves its core to whoever
computes, or carries the bytes.

MPI's own waits look without a pause. Where a rank's exchange runs beside its backward pass, or
ranks outnumber cores, that takes the core from the work being waited for: four ranks on two cores
over a 1 Gbit/s network spent 3 times the processor time.
"""

import os
import time

SPIN_SECONDS = 0.0002  # a message inside a node, or one over a fast network, has come by then
SHARE = (
    1 / 8
)  # of the time waited so far that a pause may take: no wait is much longer than it must be
PAUSE_SECONDS = 0.0002  # at most: the buffers of a TCP socket last longer than that


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
