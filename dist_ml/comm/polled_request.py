"""Waiting for one of MPI's requests by looking at it now and then."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from dist_ml.comm.peer_monitor import Peer, PeerMonitor, death_soon
from dist_ml.errors import PeerLostError


class PolledRequest:
    """MPI's request, looked at until it is done, as long as the ranks of this node live."""

    __slots__ = ("Test", "_peers")

    def __init__(self, request: Any, peers: Sequence[Peer], status: Any = None) -> None:
        self.Test = request.Test if status is None else partial(request.Test, status)
        self._peers = peers

    def Wait(self) -> None:  # noqa: N802 - as `Pending` names it
        try:
            if not self.Test():
                monitor = PeerMonitor(self._peers)
                while not self.Test():
                    monitor.between_looks()
        except RuntimeError:  # MPI's own: it has found a dead rank's memory gone, for example
            if death := death_soon(self._peers):
                raise PeerLostError(death) from None
            raise
