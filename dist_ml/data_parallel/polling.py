"""Buckets whose messages move each time that a gradient becomes final: overlap without a thread."""

from collections.abc import Callable, Sequence

from dist_ml.comm.request import Request
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.partition import Range


class Polling:
    """Calls `start(i)` for the i-th of `buckets`, in this order, as soon as its gradients and all
    earlier buckets' are final.
    """

    def __init__(
        self, gradients: FlatGradients, buckets: Sequence[Range], start: Callable[[int], Request]
    ) -> None:
        self._start = start
        self._running = False
        self._requests: list[Request] = []
        self._owners = [
            next(
                number
                for number, bucket in enumerate(buckets)
                if bucket.start <= part.start < bucket.stop
            )
            for part in gradients.ranges
        ]
        self._sizes = [self._owners.count(number) for number in range(len(buckets))]
        self._waiting = list(self._sizes)
        gradients.on_ready(self._ready)

    def start(self) -> None:
        """Gradients become final from here on."""
        self._waiting = list(self._sizes)
        self._requests = []
        self._running = True

    def finish(self) -> None:
        """Start what got no gradient, and wait for all."""
        self._running = False
        while len(self._requests) < len(self._sizes):
            self._requests.append(self._start(len(self._requests)))
        for request in self._requests:
            request.wait()

    def _ready(self, parameter: int) -> None:
        if not self._running:
            return
        self._waiting[self._owners[parameter]] -= 1
        while len(self._requests) < len(self._sizes) and self._waiting[len(self._requests)] == 0:
            self._requests.append(self._start(len(self._requests)))
        for request in self._requests:
            request.test()
