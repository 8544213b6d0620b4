"""Dense gradient exchange over a member of the allreduce family, all at once or bucket by bucket
behind the backward pass.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.backoff import Backoff
from dist_ml.comm.request import Request
from dist_ml.data_parallel.background import Background
from dist_ml.data_parallel.buckets import choose_bytes, cut
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.polling import Polling

# How often the thread looks after its messages while the backward pass runs. A look costs 10 to 20
# µs of processor time; between two of them the wire drains what is queued in the sockets, and that
# lasts longer than this.
_LOOK_SECONDS = 0.001

# Buckets under way beside each other: while one's last messages arrive, the next one's first keep
# the wire busy.
_AT_A_TIME = 2

Overlap = Literal["none", "thread", "poll"]


def finish_behind(
    requests: deque[Request], hurry: threading.Event, enough: Callable[[], bool] = lambda: False
) -> None:
    """Bring `requests` to their end on a thread, or until it is `enough`: rarely looked at while
    the rank computes, often once `hurry` is set. All of them move; what has ended leaves from the
    left.
    """
    backoff: Backoff | None = None
    while requests:
        ended = [request.test() for request in requests]
        while ended and ended.pop(0):
            requests.popleft()
        if not requests or enough():
            return
        if hurry.is_set():
            backoff = backoff or Backoff()
            backoff.between_looks()
        else:
            time.sleep(_LOOK_SECONDS)


class DenseReducer:
    """Sums the whole flat buffer, tail included, over the ranks of `allreduce`.

    overlap=none: one reduction, after the backward pass. thread: each bucket as soon as its
    gradients are final, by a thread that naps between looks, until the backward pass is over and
    nothing else is left to do. poll: likewise, but the messages only move when a gradient becomes
    final. Words and messages: the algorithm's for each bucket. `diagnostics` tell how much was
    hidden.
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
        buffer = gradients.buffer
        total = buffer.numel()
        words = choose_bytes(bucket_bytes, total * buffer.element_size()) // buffer.element_size()
        self.buckets = cut(gradients.ranges, total, max(1, words))
        self._hurry = threading.Event()
        self._behind: Background | Polling | None = None
        if overlap == "thread":
            self._behind = Background(gradients, self.buckets, self._reduce)
        elif overlap == "poll":
            self._behind = Polling(gradients, self.buckets, self._start)
        self._flying: deque[Request] = deque()
        self._spans: list[tuple[float, float]] = []
        self._backward_over = 0.0

    def start(self) -> None:
        self._spans = []
        self._flying.clear()
        self._hurry.clear()
        if self._behind is not None:
            self._behind.start()

    def finish(self) -> None:
        self._backward_over = time.perf_counter()
        if self._behind is None:
            self._allreduce(self._gradients.buffer)
            return
        self._hurry.set()
        self._behind.finish()

    def diagnostics(self) -> dict[str, float]:
        """Seconds in which buckets of the last step were under way, and how many of those passed
        behind the backward pass.
        """
        if not self._spans:
            return {}
        hidden = [
            (start, min(stop, self._backward_over))
            for start, stop in self._spans
            if start < self._backward_over
        ]
        return {"exchange_seconds": _covered(self._spans), "hidden_seconds": _covered(hidden)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, f"a dense reducer has no state, but got {list(state)}"

    def _start(self, number: int) -> Request:
        return self._allreduce.start(self._gradients.buffer[self.buckets[number].slice])

    def _reduce(self, number: int) -> None:
        """On the thread: begin this bucket, and look after all that are under way until the next
        one may begin beside them.
        """
        behind = self._behind
        assert isinstance(behind, Background)
        start = time.perf_counter()
        request = self._start(number).then(lambda: self._spans.append((start, time.perf_counter())))
        self._flying.append(request)
        finish_behind(
            self._flying,
            self._hurry,
            lambda: len(self._flying) < _AT_A_TIME and behind.num_final > number + 1,
        )


def _covered(spans: list[tuple[float, float]]) -> float:
    """The time that lies in at least one of `spans`."""
    covered, reached = 0.0, 0.0
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return covered
