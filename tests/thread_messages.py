"""Messages between the threads of a world, completed as late as MPI may, or as early.

MPI may hold a short message in a buffer of its own, so that a send completes at once, or send
nothing before a receive is there. Code that is right under both waits for no send that nobody
receives, and leaves a buffer alone until its request has completed.

    rendezvous   a send completes when a matching receive has been posted
    buffered     a send completes at once

Under both, what was sent is what the buffer held when `isend` was called. Under `rendezvous` the
buffer must still hold it when the message is taken and when the request completes, what is received
shows in its buffer no sooner than its request has completed, and everything that was sent or posted
must have completed in the end.
"""

import threading
import time
from collections import defaultdict, deque
from typing import Literal, TypeAlias

import numpy as np

from dist_ml.comm.buffer import Array

Sends: TypeAlias = Literal["rendezvous", "buffered"]
DEFAULT_SENDS: Sends = "rendezvous"
LIMIT_SECONDS = 20.0
_LOOK_SECONDS = 0.05  # between looks whether another rank has failed
_POISON = 0xFF  # bytes of a buffer that nothing has arrived in: NaN, or -1


class World:
    """What all threads of a world share, whatever groups they split into."""

    def __init__(self, sends: Sends) -> None:
        self.sends = sends
        self.failed = False
        self.under_way: set[Sent | Posted] = set()
        self._barriers: list[threading.Barrier] = []

    def barrier(self, size: int) -> threading.Barrier:
        """A barrier for `size` threads, broken when a rank fails."""
        barrier = threading.Barrier(size)
        self._barriers.append(barrier)
        return barrier

    def fail(self) -> None:
        """A rank has failed: let no other wait for it."""
        self.failed = True
        for barrier in self._barriers:
            barrier.abort()

    def wait(self, event: threading.Event, what: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not event.wait(_LOOK_SECONDS):
            if self.failed:
                raise threading.BrokenBarrierError
            assert time.monotonic() < deadline, f"waited {LIMIT_SECONDS:g} s for {what}"

    def check_end(self) -> None:
        """All ranks have returned."""
        left = sorted(str(one) for one in self.under_way)
        assert not left, "never completed: " + "; ".join(left)


class Sent:
    """A send, and MPI's request for it."""

    def __init__(self, world: World, array: Array, route: tuple[int, int, int]) -> None:
        self.copy = array.copy()
        self._world, self._array = world, array
        self._taken = threading.Event()
        self._name = "the {2}-tagged message from rank {0} to rank {1}".format(*route)
        world.under_way.add(self)

    def __str__(self) -> str:
        return f"the send of {self._name}"

    def take(self) -> None:
        """A receive is there for it."""
        self._check_unchanged()
        self._taken.set()
        if self._world.sends == "buffered":
            self._world.under_way.discard(self)

    def Test(self) -> bool:  # noqa: N802 - as `Pending` names it
        if not self._taken.is_set():
            return False
        self._check_unchanged()
        self._world.under_way.discard(self)
        return True

    def Wait(self) -> None:  # noqa: N802
        self._world.wait(self._taken, f"somebody to receive {self._name}")
        self.Test()

    def _check_unchanged(self) -> None:
        if self._world.sends == "rendezvous":
            same = np.array_equal(self._array.view(np.uint8), self.copy.view(np.uint8))
            assert same, f"the buffer of {self._name} was changed before its send had completed"


class Posted:
    """A receive, and MPI's request for it; without an array, of a message of any size."""

    def __init__(self, world: World, array: Array | None, route: tuple[int, int, int]) -> None:
        self._world, self._array = world, array
        self._message: Sent | None = None
        self._matched = threading.Event()
        self._name = "a {2}-tagged message from rank {0} to rank {1}".format(*route)
        if array is not None:
            array.view(np.uint8)[...] = _POISON
        world.under_way.add(self)

    def __str__(self) -> str:
        return f"the receive of {self._name}"

    def match(self, message: Sent) -> None:
        message.take()
        self._message = message
        self._matched.set()

    def Test(self) -> bool:  # noqa: N802
        if not self._matched.is_set():
            return False
        self._world.under_way.discard(self)
        if self._array is not None:
            self._deliver(self._array)
        return True

    def Wait(self) -> None:  # noqa: N802
        self._world.wait(self._matched, self._name)
        self.Test()

    @property
    def message(self) -> Array:
        """What has arrived."""
        assert self._message is not None
        return self._message.copy

    def _deliver(self, array: Array) -> None:
        message = self.message
        assert message.dtype == array.dtype, (self._name, message.dtype, array.dtype)
        assert message.size == array.size, (self._name, message.size, array.size)
        untouched = bool((array.view(np.uint8) == _POISON).all())
        assert untouched, f"the buffer for {self._name} was written before it had arrived"
        array[...] = message


class Mailboxes:
    """The messages of one group that nobody has received, and the receives that nobody has sent
    for. Messages of one route (source, destination, tag) don't overtake each other.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()
        self._sent: dict[tuple[int, int, int], deque[Sent]] = defaultdict(deque)
        self._posted: dict[tuple[int, int, int], deque[Posted]] = defaultdict(deque)

    def send(self, array: Array, source: int, destination: int, tag: int) -> Sent:
        route = source, destination, tag
        message = Sent(self._world, array, route)
        with self._lock:
            if self._posted[route]:
                self._posted[route].popleft().match(message)
            else:
                self._sent[route].append(message)
        return message

    def receive(self, array: Array | None, source: int, destination: int, tag: int) -> Posted:
        route = source, destination, tag
        posted = Posted(self._world, array, route)
        with self._lock:
            if self._sent[route]:
                posted.match(self._sent[route].popleft())
            else:
                self._posted[route].append(posted)
        return posted
