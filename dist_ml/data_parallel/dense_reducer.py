"""Dense gradient exchange over a member of the allreduce family, all at once or bucket by bucket
while the backward pass runs.
"""

import threading
import time
from collections import deque
from typing import Literal

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.request import Request
from dist_ml.data_parallel.bucket_scheduler import BucketScheduler
from dist_ml.data_parallel.buckets import choose_bytes, cut
from dist_ml.data_parallel.drivers import Driver, PollingDriver, ThreadDriver, drain
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reduced_gradients import Full
from dist_ml.data_parallel.reducer import GradientReducer

# Buckets under way beside each other: while one's last messages arrive, the next one's first keep
# the wire busy.
_AT_A_TIME = 2

Overlap = Literal["none", "thread", "poll"]


class DenseReducer(GradientReducer):
    """Sums the whole flat buffer, slots included, over the ranks of `allreduce`.

    overlap=none: one reduction, after the backward pass. thread: each bucket as soon as its
    gradients are final, by a thread that looks at its messages now and then until the backward pass
    is over and nothing else is left to do. poll: likewise, but the messages only move when a
    gradient becomes final. Words and messages: the algorithm's for each bucket. `diagnostics` tell
    how much was hidden.
    """

    def __init__(
        self,
        gradients: FlatGradients,
        allreduce: Allreduce,
        overlap: Overlap = "none",
        bucket_bytes: int | None = None,
    ) -> None:
        self._gradients = gradients
        self._allreduce = allreduce
        self.slots = gradients.slots
        buffer = gradients.buffer
        total = buffer.numel()
        words = choose_bytes(bucket_bytes, total * buffer.element_size()) // buffer.element_size()
        self.buckets = cut(gradients.ranges, total, max(1, words))
        self._drain_soon = threading.Event()
        self._in_flight: deque[Request] = deque()
        self._spans: list[tuple[float, float]] = []
        self._backward_over = 0.0
        self._scheduler: BucketScheduler | None = None
        if overlap != "none":
            driver: Driver = (
                ThreadDriver(self._exchange) if overlap == "thread" else PollingDriver(self._start)
            )
            self._scheduler = BucketScheduler(gradients.ranges, self.buckets, driver)
            gradients.on_final(self._scheduler.ready)

    def begin(self) -> None:
        self._gradients.begin()

    def start(self) -> None:
        if self._scheduler is not None:
            self._spans = []
            self._in_flight.clear()
            self._drain_soon.clear()
            self._scheduler.begin()

    def finish(self) -> Full:
        self._backward_over = time.perf_counter()
        self._gradients.complete()
        if self._scheduler is None:
            self._allreduce(self._gradients.buffer)
        else:
            self._drain_soon.set()
            self._scheduler.finish()
        return Full(self._gradients.flat, self.slots)

    def diagnostics(self) -> dict[str, float]:
        """Seconds in which buckets of the last step were under way, and how many of those passed
        during the backward pass.
        """
        if not self._spans:
            return {}
        over = self._backward_over
        hidden = [(start, min(stop, over)) for start, stop in self._spans if start < over]
        return {"exchange_seconds": _covered(self._spans), "hidden_seconds": _covered(hidden)}

    def close(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
        self._allreduce.free()

    def _start(self, number: int) -> Request:
        return self._allreduce.start(self._gradients.buffer[self.buckets[number].slice])

    def _exchange(self, number: int) -> None:
        """On the thread: begin this bucket, and look after all that are under way until the next
        one may begin beside them.
        """
        scheduler = self._scheduler
        assert scheduler is not None
        start = time.perf_counter()
        request = self._start(number)
        request.then(lambda: self._spans.append((start, time.perf_counter())))
        self._in_flight.append(request)
        drain(
            self._in_flight,
            self._drain_soon,
            self._allreduce.comm.transport.peers,
            lambda: len(self._in_flight) < _AT_A_TIME and scheduler.num_launched > number + 1,
        )


def _covered(spans: list[tuple[float, float]]) -> float:
    """The time that lies in at least one of `spans`."""
    covered, reached = 0.0, 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return covered
