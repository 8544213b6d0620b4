"""A blocking call that can't end is noticed, and none that may still end."""

import time

import pytest
from dead_peer import dead_peer

from dist_ml.comm.blocked_calls import BlockedCalls
from dist_ml.comm.peer_monitor import Peer, this_process


class Call:
    """A transport that has been in a call for so many seconds; None: in none."""

    def __init__(self, seconds: float | None) -> None:
        self.blocked_since = 0.0 if seconds is None else time.monotonic() - seconds


@pytest.fixture(scope="module")
def dead() -> Peer:
    return dead_peer(2)


def told(peers: list[Peer], calls: list[Call]) -> list[str]:
    messages: list[str] = []
    watch = BlockedCalls(peers, messages.append, stuck_seconds=5.0, look_seconds=0.02)
    for call in calls:
        watch.register(call)
    time.sleep(0.3)
    return messages


def test_a_long_call_and_a_dead_rank_end_this_one_once(dead: Peer) -> None:
    messages = told([this_process(0), dead], [Call(None), Call(6.0)])
    assert messages == [
        f"rank 2 (process {dead.pid} on this node) died while others waited for it; start again"
    ]


@pytest.mark.parametrize("seconds", [None, 1.0], ids=["outside a call", "in a short one"])
def test_a_rank_that_computes_goes_on(dead: Peer, seconds: float | None) -> None:
    assert told([dead], [Call(seconds)]) == []


def test_a_long_call_among_living_ranks_goes_on() -> None:
    assert told([this_process(0)], [Call(100.0)]) == []


def test_transports_that_are_gone_are_forgotten(dead: Peer) -> None:
    messages: list[str] = []
    watch = BlockedCalls([dead], messages.append, look_seconds=0.02)
    watch.register(Call(100.0))
    time.sleep(0.2)
    assert messages == []
