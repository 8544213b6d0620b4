"""Buckets reduced on a thread, each as soon as the backward pass has finished its gradients."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.partition import Range


class Background:
    """Calls `reduce(i)` for the i-th of `buckets` on one thread, in this order, whatever the order
    gradients come in.

    Every rank reduces in the same order, or exchanges would cross. `reduce` may communicate: nobody
    else does meanwhile.
    """

    def __init__(
        self, gradients: FlatGradients, buckets: Sequence[Range], reduce: Callable[[int], None]
    ) -> None:
        self._reduce = reduce
        self._thread = ThreadPoolExecutor(1, "gradient-exchange")
        self._futures: list[Future[None]] = []
        self._running = False
        self._sizes: list[int] = [0] * len(buckets)
        self._owners = [
            next(
                number
                for number, bucket in enumerate(buckets)
                if bucket.start <= part.start < bucket.stop
            )
            for part in gradients.ranges
        ]
        for owner in self._owners:
            self._sizes[owner] += 1
        gradients.on_ready(self._ready)
        self._waiting = list(self._sizes)

    def start(self) -> None:
        """Gradients become final from here on."""
        self._waiting = list(self._sizes)
        self._futures = []
        self._running = True

    def finish(self) -> None:
        """Wait for all buckets, those that got no gradient included; the first error is raised
        here.
        """
        self._running = False
        while len(self._futures) < len(self._sizes):
            self._submit()
        for future in self._futures:
            future.result()

    @property
    def num_final(self) -> int:
        """How many buckets have been handed to the thread."""
        return len(self._futures)

    def _ready(self, parameter: int) -> None:
        if not self._running:
            return
        self._waiting[self._owners[parameter]] -= 1
        while len(self._futures) < len(self._sizes) and self._waiting[len(self._futures)] == 0:
            self._submit()

    def _submit(self) -> None:
        self._futures.append(self._thread.submit(self._reduce, len(self._futures)))
