"""What all MPI communicators of one world have in common, so that a death can be told in all of
them.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from dist_ml.comm.blocked_calls import BlockedCalls
from dist_ml.comm.peer_monitor import Peer
from dist_ml.comm.shared_window import SharedWindow


class Member(Protocol):
    """A transport of the family."""

    comm: Any
    blocked_since: float


class MpiFamily:
    """The transports and shared windows that come from one world, as long as they are in use.

    `peers` are the ranks of the world that this process can see; `watch`, where it is set, sees to
    their blocking calls.
    """

    def __init__(self, peers: Sequence[Peer] = ()) -> None:
        self.peers = peers
        self.survives = False  # the deaths of ranks
        self.watch: BlockedCalls | None = None
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._windows: weakref.WeakSet[SharedWindow] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, member: Member) -> None:
        with self._lock:
            self._members.add(member)
        if self.watch is not None:
            self.watch.register(member)

    def add_window(self, window: SharedWindow) -> SharedWindow:
        with self._lock:
            self._windows.add(window)
        return window

    def give_up(self, no_comm: Any) -> None:
        """A rank has died: revoke all communicators, which ends whatever any rank waits for in
        them, and put `no_comm` in their place. Then to free them, or the windows, does nothing.
        """
        with self._lock:
            members, windows = list(self._members), list(self._windows)
        for member in members:
            if member.comm != no_comm:
                member.comm.Revoke()
                member.comm = no_comm
            member.blocked_since = 0.0
        for window in windows:
            window.give_up()

    def renew(self, peers: Sequence[Peer]) -> None:
        """From here on these are the ranks."""
        self.peers = peers
        if self.watch is not None:
            self.watch.peers = peers
