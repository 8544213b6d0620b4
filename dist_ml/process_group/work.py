"""What torch waits for: an operation that is over, or a message under way."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from math import inf
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from dist_ml.comm.peer_monitor import Peer, PeerMonitor
from dist_ml.comm.request import Request
from dist_ml.errors import CommunicationError


def done(result: Any) -> dist.Work:
    """An operation that has ended when it returns. DDP waits for the future and not for the work,
    so that one which only moves when it is asked would never end.
    """
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    make: Any = torch._C._distributed_c10d
    work: dist.Work = make._create_work_from_future(future)
    return work


class TimeLimit:
    """How long a process group waits for barriers and messages: its `timeout` in torch."""

    def __init__(self, timeout: timedelta, peers: Sequence[Peer]) -> None:
        self._timeout, self._peers = timeout, peers
        self.overdue: list[Request] = []  # kept: MPI may write into their buffers at any time

    def wait(self, what: str, request: Request, timeout: timedelta | None = None) -> None:
        """Complete `request`. `CommunicationError` once the time is over (`timeout`, unless it is
        None or not positive); MPI has no way to take back what the others still wait for.
        """
        seconds = (timeout or self._timeout).total_seconds()
        if seconds <= 0:
            seconds = self._timeout.total_seconds()
        monitor, deadline = PeerMonitor(self._peers, inf), monotonic() + seconds
        while not request.test():
            monitor.between_looks()
            if monotonic() > deadline:
                self.overdue.append(request)
                raise CommunicationError(
                    f"the {what} was not over within its timeout of {seconds:g} s: another rank "
                    "has not come to it; make the same calls on all ranks, or allow more time by "
                    "init_process_group(…, timeout=…)"
                )


class MessageWork(dist.Work):
    """A message under way; its tensors belong to it until `wait`. `source` is called once it has
    arrived.
    """

    def __init__(self, request: Request, source: Callable[[], int], limit: TimeLimit) -> None:
        super().__init__()
        self._request, self._source, self._over = request, source, False
        self._limit = limit

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        if not self._over:
            self._limit.wait("message", self._request, timeout)
            self._over = True
        return True

    def is_completed(self) -> bool:
        self._over = self._over or self._request.test()
        return self._over

    def is_success(self) -> bool:
        return self._over

    def synchronize(self) -> None:
        self.wait()

    def source_rank(self) -> int:
        return self._source()

    _source_rank = source_rank
