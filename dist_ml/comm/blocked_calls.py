"""Ends this rank when it is stuck in one of MPI's own blocking calls because another rank has died,
or has come to the end of its script.

Such a call can't be looked into or left, so a thread keeps watch: each transport notes when it
enters a blocking call, and where one has lasted for some seconds while a rank of this node is dead,
nothing will end it any more.
"""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from dist_ml.comm.peer_monitor import Peer, death_among
from dist_ml.comm.script_end import ENDED_SECONDS, ended_among

STUCK_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Blocking(Protocol):
    """Something that makes blocking calls: `blocked_since` is when the present one began, by
    `time.monotonic`, and 0 outside of them.
    """

    blocked_since: float


class BlockedCalls:
    """Watches the registered transports on a daemon thread. `end(message)` must not return; it is
    called on that thread.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        end: Callable[[str], None],
        stuck_seconds: float = STUCK_SECONDS,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self.peers = peers
        self.end = end
        self._stuck_seconds = stuck_seconds
        self._look_seconds = look_seconds
        self._transports: weakref.WeakSet[Blocking] = weakref.WeakSet()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="blocked-calls", daemon=True).start()

    def register(self, transport: Blocking) -> None:
        """Watch this one, as long as it lives."""
        with self._lock:
            self._transports.add(transport)

    def _watch(self) -> None:
        while True:
            time.sleep(self._look_seconds)
            if self._is_stuck(self._stuck_seconds) and (death := death_among(self.peers)):
                self.end(death)
                return
            if self._is_stuck(ENDED_SECONDS) and (ended := ended_among(self.peers)):
                self.end(ended)
                return

    def _is_stuck(self, seconds: float) -> bool:
        """Has one of the transports been in the same call for so long?"""
        with self._lock:
            since = [transport.blocked_since for transport in self._transports]
        latest = time.monotonic() - seconds
        return any(0 < start < latest for start in since)
