"""Connections between the hosts of a job that tell when one can't be reached any more. MPI waits
for a cut network for a quarter of an hour, or for ever.

    host 0 ─── host 1 ─── host 2 ─── host 3 …     the lowest rank of each host keeps a connection to
       └─────────────────────┘                    those 1, 2, 4, … hosts further on

Nothing is sent over them: the kernels ask each other whether they are there (TCP keepalive, once a
second), and do so while processes compute, sleep or are stopped. So a job that is suspended is
never taken for a cut one.
"""

import errno
import logging
import math
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from dist_ml.comm.communicator import Communicator

log = logging.getLogger(__name__)

UNREACHABLE_SECONDS = 8.0
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_TOGETHER_SECONDS = 1.5  # in which a host that is cut off loses all its connections
_MOST_PROBES = 100
_HELLO = struct.Struct("!16sI")  # the job's token, and who connects


class Host(NamedTuple):
    """A host of the job. `name` is what the others find its address by."""

    name: str
    port: int
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        return f"host {self.name} (rank{'s' * (len(self.ranks) > 1)} {ranks})"


def neighbours(number: int, num_hosts: int) -> set[int]:
    """The hosts that one keeps connections to: at distances 1, 2, 4, … in either direction."""
    distances = [1 << power for power in range(num_hosts.bit_length()) if 1 << power < num_hosts]
    around = {(number + way * distance) % num_hosts for distance in distances for way in (1, -1)}
    return around - {number}


class HostLinks:
    """Within the block, which all ranks of `world` enter together, a daemon thread on the lowest
    rank of each host watches its connections, where there are several hosts and a limit.

    It ends the job, in words, `seconds` after a host was last reached. A connection that was never
    made (a name without an address, a firewall) is not watched, which the log tells. Cost: 2 log2 H
    connections for each of H hosts, and for each a packet a second.
    """

    def __init__(self, world: Communicator, seconds: float = UNREACHABLE_SECONDS) -> None:
        self._world, self._seconds = world, seconds
        self._connections: Connections | None = None

    def __enter__(self) -> "HostLinks":
        self.start()
        return self

    def start(self) -> None:
        """Until this process ends, or the block. Collective."""
        world, here = self._world, self._world.transport.peers
        if not self._seconds or len(here) in (0, world.size):  # all ranks are on one host
            return
        leader = min(peer.rank for peer in here)
        listener = _listener() if leader == world.rank else None
        port = listener.getsockname()[1] if listener is not None else 0
        own = leader, socket.gethostname(), port, secrets.token_bytes(16)
        told: list[tuple[int, str, int, bytes]] = world.allgather_objects(own)
        leaders = sorted({each[0] for each in told})
        hosts = [
            Host(*told[lead][1:3], tuple(r for r in range(world.size) if told[r][0] == lead))
            for lead in leaders
        ]
        if listener is not None:
            number, token = leaders.index(leader), told[0][3]
            self._connections = Connections(
                hosts, number, token, self._seconds, world.transport.end_stuck
            )
            self._connections.start(listener)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connections is not None:
            self._connections.over.set()


class Connections:
    """The connections of one host; `end(message)` must not return."""

    def __init__(
        self,
        hosts: Sequence[Host],
        number: int,
        token: bytes,
        seconds: float,
        end: Callable[[str], None],
    ) -> None:
        self._hosts, self._number, self._token = hosts, number, token
        self._seconds, self._end = seconds, end
        self.over = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._lost: set[int] = set()

    def start(self, listener: socket.socket) -> None:
        """Others connect to `listener`, which belongs to the thread from here on."""
        arguments = [listener]
        threading.Thread(target=self._run, args=arguments, name="host-links", daemon=True).start()

    def _run(self, listener: socket.socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ)
        for number in neighbours(self._number, len(self._hosts)):
            if number > self._number:  # of two hosts the first one connects
                self._connect(number)
        while not self.over.is_set() and not self._lost:
            self._look(listener)
        deadline = time.monotonic() + _TOGETHER_SECONDS
        while not self.over.is_set() and self._watched() and time.monotonic() < deadline:
            self._look(listener)
        if not self.over.is_set():
            self._end(self._words())
        for key in [*self._selector.get_map().values()]:
            self._forget(key.fileobj)

    def _look(self, listener: socket.socket) -> None:
        for key, _ in self._selector.select(_LOOK_SECONDS):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is listener:
                self._accept(listener)
                continue
            try:
                connection.recv(1)  # nothing is sent: the other host has ended its watch
            except OSError as error:
                if error.errno in _UNREACHABLE:
                    self._lost.add(key.data)
            self._forget(connection)

    def _connect(self, number: int) -> None:
        host = self._hosts[number]
        try:
            connection = socket.create_connection((host.name, host.port), _CONNECT_SECONDS)
            connection.sendall(_HELLO.pack(self._token, self._number))
        except OSError as error:
            log.warning("the network to %s is not watched: %s", host, error)
        else:
            self._keep(connection, number)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        try:
            connection.settimeout(_LOOK_SECONDS)
            token, number = _HELLO.unpack(connection.recv(_HELLO.size, socket.MSG_WAITALL))
        except (OSError, struct.error):
            token, number = b"", 0
        if secrets.compare_digest(token, self._token):
            self._keep(connection, number)
        else:  # of no rank of this job
            connection.close()

    def _keep(self, connection: socket.socket, number: int) -> None:
        _ask_often(connection, self._seconds)
        self._selector.register(connection, selectors.EVENT_READ, number)

    def _forget(self, connection: object) -> None:
        assert isinstance(connection, socket.socket)
        self._selector.unregister(connection)
        connection.close()

    def _watched(self) -> bool:
        return len(self._selector.get_map()) > 1  # beside the listener

    def _words(self) -> str:
        own, hosts = self._hosts[self._number], self._hosts
        lost = " and ".join(str(hosts[number]) for number in sorted(self._lost))
        for_long = f"for {self._seconds:g} s; is the network between them cut, or a host down?"
        if len(hosts) == 2:
            return f"{own} and {lost} have not reached each other {for_long}"
        if len(self._lost) > 1 and not self._watched():
            return f"{own} has reached no other host {for_long}"
        return f"{own} has not reached {lost} {for_long}"


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _ask_often(connection: socket.socket, seconds: float) -> None:
    """Have the kernel find out within so long that the other one doesn't answer."""
    interval = max(1, math.ceil(seconds / _MOST_PROBES))
    probes = max(1, round(seconds / interval) - 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", interval),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", round(1000 * seconds)),  # of what is on its way
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
