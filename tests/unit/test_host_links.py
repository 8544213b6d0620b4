"""Connections between hosts: who keeps them to whom, and what of them ends a job. A link that is
really cut: tests/cluster/test_cut_links.py.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dist_ml.comm import host_links
from dist_ml.comm.host_links import Connections, Host, HostLinks, neighbours
from dist_ml.config.fault import FaultConfig
from dist_ml.errors import ConfigError
from tests.thread_world import run_ranks

LIMIT_SECONDS = 10.0
TOKEN = b"t" * 16


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4, 7, 64])
def test_neighbours_are_mutual_and_few_and_join_all(num_hosts: int) -> None:
    of = [neighbours(number, num_hosts) for number in range(num_hosts)]
    assert all(number in of[other] for number in range(num_hosts) for other in of[number])
    assert all(len(each) <= 2 * num_hosts.bit_length() for each in of)
    reached, new = {0}, {0}
    while new:
        new = set().union(*(of[number] for number in new)) - reached
        reached |= new
    assert reached == {*range(num_hosts)}


class Failing(socket.socket):
    """A connection on which whatever comes is an error."""

    error = errno.ETIMEDOUT

    def recv(self, *_: Any) -> bytes:
        raise OSError(self.error, "")


class FirstOf:
    """The connections of the first of so many hosts, which are all this one; `others`: their other
    ends; `said`: what ended the job.
    """

    def __init__(self, num_hosts: int) -> None:
        listeners = [host_links._listener() for _ in range(num_hosts)]
        ports = [listener.getsockname()[1] for listener in listeners]
        hosts = [Host(f"h{number}", port, (number,)) for number, port in enumerate(ports)]
        self.said: list[str] = []
        self.kept = Connections(hosts, 0, TOKEN, 8.0, self.said.append)
        self.kept.start(listeners[0])
        self.others = [listener.accept()[0] for listener in listeners[1:]]
        self.until(lambda: self.watched() == num_hosts - 1)
        self.address = ("localhost", ports[0])

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def watched(self) -> int:
        return len(self.kept._selector.get_map()) - 1


@pytest.fixture
def first_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], FirstOf]]:
    made: list[FirstOf] = []
    connect = socket.create_connection

    def failing(address: tuple[str, int], timeout: float) -> Failing:
        return Failing(fileno=connect(("localhost", address[1]), timeout).detach())

    def make(num_hosts: int) -> FirstOf:
        made.append(FirstOf(num_hosts))
        return made[-1]

    monkeypatch.setattr(host_links.socket, "create_connection", failing)
    monkeypatch.setattr(host_links, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(host_links, "_TOGETHER_SECONDS", 0.3)
    yield make
    for each in made:
        each.kept.over.set()


@pytest.mark.parametrize(
    ("num_hosts", "lost", "words"),
    [
        (2, [1], "host h0 (rank 0) and host h1 (rank 1) have not reached each other for 8 s; is"),
        (3, [2], "host h0 (rank 0) has not reached host h2 (rank 2) for 8 s; is the network"),
        (3, [1, 2], "host h0 (rank 0) has reached no other host for 8 s; is the network"),
    ],
)
def test_hosts_that_do_not_answer_end_the_job(
    num_hosts: int, lost: list[int], words: str, first_of: Callable[[int], FirstOf]
) -> None:
    first = first_of(num_hosts)
    for number in lost:
        first.others[number - 1].sendall(b"x")
    first.until(lambda: bool(first.said))
    assert first.said[0].startswith(words)


def test_what_ends_a_connection_does_not_end_the_job(
    first_of: Callable[[int], FirstOf], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that has ended, and one that was killed."""
    monkeypatch.setattr(Failing, "error", errno.ECONNRESET)
    first = first_of(3)
    first.others[0].close()
    first.others[1].sendall(b"x")
    first.until(lambda: first.watched() == 0)
    time.sleep(0.4)
    assert first.said == []


def test_a_stranger_is_not_watched(first_of: Callable[[int], FirstOf]) -> None:
    first = first_of(2)
    with socket.socket() as stranger:
        stranger.settimeout(LIMIT_SECONDS)
        stranger.connect(first.address)
        stranger.sendall(host_links._HELLO.pack(b"s" * 16, 1))
        assert stranger.recv(1) == b""
    assert first.watched() == 1


def test_ranks_of_one_host_keep_none() -> None:
    def body(comm: Any) -> bool:
        with HostLinks(comm) as links:
            return links._connections is None

    assert run_ranks(3, body) == [True] * 3


@pytest.mark.parametrize("seconds", [-1.0, 1.0, float("inf"), float("nan")])
def test_limits_that_mean_nothing_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"unreachable_seconds=.* must be 2 or more"):
        FaultConfig(unreachable_seconds=seconds)
