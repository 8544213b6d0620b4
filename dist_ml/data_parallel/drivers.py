"""How buckets that are final get exchanged: at once, by polling, or on a thread."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from dist_ml.comm.peer_monitor import Peer, PeerMonitor
from dist_ml.comm.request import Request

# How often the thread looks after its messages while the backward pass runs. A look costs 10 to 20
# µs of processor time; between two of them the wire drains what is queued in the sockets, and that
# lasts longer than this.
_LOOK_SECONDS = 0.001


class Driver(ABC):
    """Exchanges buckets in the order in which they are launched, the same on all ranks."""

    @abstractmethod
    def launch(self, number: int) -> None:
        """Bucket `number` is final."""

    def poll(self) -> None:  # noqa: B027 - for those that move when they are looked at
        """Another gradient has become final."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for all that was launched; the first error is raised here."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """End the thread, where there is one."""


class InlineDriver(Driver):
    """Calls `run(number)` where the bucket is launched, and returns when it is done."""

    def __init__(self, run: Callable[[int], None]) -> None:
        self._run = run

    def launch(self, number: int) -> None:
        self._run(number)

    def finish(self) -> None:
        """All is done."""


class PollingDriver(Driver):
    """Calls `start(number)`; the requests move each time that a gradient becomes final."""

    def __init__(self, start: Callable[[int], Request]) -> None:
        self._start = start
        self._in_flight: list[Request] = []

    def launch(self, number: int) -> None:
        self._in_flight.append(self._start(number))

    def poll(self) -> None:
        for request in self._in_flight:
            request.test()

    def finish(self) -> None:
        in_flight, self._in_flight = self._in_flight, []
        for request in in_flight:
            request.wait()


class ThreadDriver(Driver):
    """Calls `run(number)` on one thread. It may communicate: nobody else does meanwhile.

    After a failure nothing more of the step is run: it would not fit the other ranks' exchanges.
    """

    def __init__(self, run: Callable[[int], None], name: str = "gradient-exchange") -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, name)
        self._futures: list[Future[None]] = []
        self._failed = False

    def launch(self, number: int) -> None:
        self._futures.append(self._thread.submit(self._run_unless_failed, number))

    def finish(self) -> None:
        futures, self._futures = self._futures, []
        wait(futures)
        self._failed = False
        for future in futures:
            future.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run_unless_failed(self, number: int) -> None:
        if self._failed:
            return
        try:
            self._run(number)
        except BaseException:
            self._failed = True
            raise


def drain(
    in_flight: deque[Request],
    soon: threading.Event,
    peers: Sequence[Peer] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """On a thread, bring requests to their end, or until `stop` says so.

    While the rank computes they are looked at rarely; once `soon` is set, often. All of them move;
    what has ended leaves from the left. `CommunicationError` when one of `peers` has died.
    """
    monitor: PeerMonitor | None = None
    while in_flight:
        ended = [request.test() for request in in_flight]
        while ended and ended.pop(0):
            in_flight.popleft()
        if not in_flight or stop():
            return
        if soon.is_set():
            if monitor is None:
                monitor = PeerMonitor(peers)
                for request in in_flight:
                    request.is_awaited()
            monitor.between_looks()
        else:
            time.sleep(_LOOK_SECONDS)
