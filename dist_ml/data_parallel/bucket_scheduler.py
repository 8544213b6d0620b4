"""Which bucket may be exchanged when: each as soon as its gradients, and all earlier buckets', are
final.
"""

from collections.abc import Sequence

from dist_ml.data_parallel.drivers import Driver
from dist_ml.partition import Range


class BucketScheduler:
    """Launches buckets 0, 1, … on a `Driver`, in this order on every rank, or exchanges would
    cross.

    `ranges` are the parameters' places in the flat gradient; each lies in one of `buckets`. Call
    `ready(i)` as parameter i's gradient becomes final, in any order. Cost: a count a gradient.
    """

    def __init__(self, ranges: Sequence[Range], buckets: Sequence[Range], driver: Driver) -> None:
        self._driver = driver
        self._owners = [_owner(part, buckets) for part in ranges]
        self._sizes = [0] * len(buckets)
        for owner in self._owners:
            self._sizes[owner] += 1
        self._missing = list(self._sizes)
        self._active = False
        self.num_launched = 0

    def begin(self) -> None:
        """Gradients become final from here on; before, `ready` does nothing."""
        self._missing = list(self._sizes)
        self.num_launched = 0
        self._active = True

    def ready(self, parameter: int) -> None:
        """The gradient of `parameter` is final."""
        if not self._active:
            return
        self._missing[self._owners[parameter]] -= 1
        while self.num_launched < len(self._sizes) and self._missing[self.num_launched] <= 0:
            self._launch()
        self._driver.poll()

    def finish(self) -> None:
        """Launch what got no gradient, and wait for all; the first error is raised here."""
        self._active = False
        while self.num_launched < len(self._sizes):
            self._launch()
        self._driver.finish()

    def close(self) -> None:
        self._active = False
        self._driver.close()

    def _launch(self) -> None:
        self.num_launched += 1
        self._driver.launch(self.num_launched - 1)


def _owner(part: Range, buckets: Sequence[Range]) -> int:
    return next(
        number for number, bucket in enumerate(buckets) if bucket.start <= part.start < bucket.stop
    )
