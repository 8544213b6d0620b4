"""Waiting for other ranks, as long as those of this node live, and not for ever.

A launcher usually ends all ranks when one dies. Where it doesn't, MPI's own waits go on for ever,
and so would a rank that looks at shared memory.
"""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from dist_ml.comm.backoff import Backoff
from dist_ml.comm.script_end import ENDED_SECONDS, ended_among
from dist_ml.errors import CommunicationError, PeerLostError
from dist_ml.flight import on_signal

# A rank may be busy for long (an evaluation, a checkpoint), but not for ever.
LIMIT_SECONDS = 1800.0
_LOOK_SECONDS = 0.25
_DYING_SECONDS = 1.0  # a large process's memory takes a while to be given back


class Peer(NamedTuple):
    """A rank of this node: its number in the world, its process, and the namespace that the process
    id is valid in.
    """

    rank: int
    pid: int
    namespace: str


def this_process(rank: int) -> Peer:
    """This rank as others will know it."""
    return Peer(rank, os.getpid(), _pid_namespace())


class PeerMonitor:
    """What to do between two looks at something that other ranks bring about.

    `peers` are ranks whose processes can be seen from here. Cost: a look at each of them four times
    a second.
    """

    def __init__(self, peers: Sequence[Peer], limit_seconds: float = LIMIT_SECONDS) -> None:
        self._peers = peers
        self._backoff = Backoff()
        self._next_look = _LOOK_SECONDS
        self._limit_seconds = limit_seconds

    def between_looks(self) -> None:
        """Leave the core to others for a moment. `PeerLostError` when a peer has died,
        `CommunicationError` when its script is over or the wait has lasted beyond its limit.
        """
        waited = self._backoff.between_looks()
        if waited > self._next_look:
            self._next_look = waited + _LOOK_SECONDS
            self._look(waited)

    def _look(self, waited_seconds: float) -> None:
        if death := death_among(self._peers):
            raise PeerLostError(death)
        if waited_seconds > ENDED_SECONDS and (ended := ended_among(self._peers)):
            raise CommunicationError(ended)
        if waited_seconds > self._limit_seconds:
            raise CommunicationError(
                f"waited {waited_seconds:.0f} s for other ranks; every rank must make the same "
                "exchanges in the same order (comm.checked=true finds the first that differs)"
            )


def death_among(peers: Sequence[Peer]) -> str | None:
    """Who of `peers` has died, in words; None where all live."""
    for peer in peers:
        if not is_alive(peer):
            return (
                f"rank {peer.rank} (process {peer.pid} on this node) died while others waited for "
                "it; start again"
            )
    return None


def death_soon(peers: Sequence[Peer]) -> str | None:
    """As `death_among`, of ranks that may be dying: their memory is gone before they have ended."""
    deadline = time.monotonic() + _DYING_SECONDS
    while (death := death_among(peers)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return death


def is_alive(peer: Peer) -> bool:
    """False once the process has ended, reaped or not; True where this process can't tell."""
    return _state(peer) not in ("Z", "X")


def is_stopped(peer: Peer) -> bool:
    """Has a signal (SIGSTOP), or a debugger, stopped the process? False where that can't be
    told.
    """
    return _state(peer) in ("T", "t")


def tell_to_record(peers: Sequence[Peer]) -> int:
    """Have the other ranks that can be seen from here write their flight records; how many will."""
    here = _pid_namespace()
    return on_signal.tell(p.pid for p in peers if p.namespace == here and p.pid != os.getpid())


def _state(peer: Peer) -> str:
    """The letter of /proc: X for a process that is gone, empty where this process can't tell."""
    if peer.namespace != _pid_namespace():
        return ""
    try:
        with open(f"/proc/{peer.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"
