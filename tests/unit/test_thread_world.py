"""The world of threads itself: sends that complete as late as MPI may, buffers that are changed too
early, waits that would never end.
"""

import time
from collections.abc import Callable

import numpy as np
import pytest

from dist_ml.comm.communicator import Communicator
from tests import thread_messages
from tests.thread_world import run_ranks


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_messages, "LIMIT_SECONDS", 0.3)


def later(comm: Communicator, act: Callable[[Communicator], None], ready: list[bool]) -> None:
    """`act` on rank 1, once rank 0 has said that it is ready."""
    if comm.rank == 1:
        while not ready:
            time.sleep(0.001)
        act(comm)


def test_a_send_completes_when_it_is_received_or_at_once(sends: str) -> None:
    ready: list[bool] = []

    def body(comm: Communicator) -> None:
        if comm.rank == 0:
            request = comm.isend(np.arange(3.0), 1, tag=7)
            assert request.test() is (sends == "buffered")
            ready.append(True)
            request.wait()
        later(comm, lambda comm: np.testing.assert_equal(received(comm, 7), [0, 1, 2]), ready)

    run_ranks(2, body)


def received(comm: Communicator, tag: int) -> np.ndarray:
    x = np.empty(3)
    comm.receive(x, 0, tag)
    return x


def test_a_posted_receive_lets_the_send_complete_and_shows_nothing_before_it_ends() -> None:
    posted, sent = [], []

    def body(comm: Communicator) -> None:
        if comm.rank == 1:
            x = np.zeros(2)
            request = comm.ireceive(x, 0)
            posted.append(True)
            while not sent:
                time.sleep(0.001)
            assert np.isnan(x).all()
            request.wait()
            assert x.tolist() == [5, 5]
        else:
            while not posted:
                time.sleep(0.001)
            comm.send(np.full(2, 5.0), 1)
            sent.append(True)

    run_ranks(2, body)


def test_messages_of_one_tag_keep_their_order_and_other_tags_do_not_wait() -> None:
    def body(comm: Communicator) -> list[int]:
        if comm.rank == 0:
            values = [(1, 9), (2, 9), (3, 4)]
            requests = [comm.isend(np.array([value]), 1, tag) for value, tag in values]
            for request in requests:
                request.wait()
            return []
        return [int(comm.receive_message("int64", 0, tag)[0]) for tag in (4, 9, 9)]

    assert run_ranks(2, body)[1] == [3, 1, 2]


@pytest.mark.parametrize("taken", [False, True], ids=["before it is taken", "after"])
def test_a_buffer_changed_before_its_send_has_completed_is_named(taken: bool) -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 0:
            x = np.zeros(4, np.float32)
            request = comm.isend(x, 1, tag=31)
            if taken:
                comm.barrier()
            x[3] = 1
            if not taken:
                comm.barrier()
            request.wait()
        else:
            if not taken:
                comm.barrier()
            posted = comm.ireceive(np.zeros(4, np.float32), 0, tag=31)
            if taken:
                comm.barrier()
            posted.wait()

    with pytest.raises(AssertionError, match="31-tagged message from rank 0 to rank 1 was changed"):
        run_ranks(2, body)


def test_a_buffer_written_before_its_message_has_arrived_is_named() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.send(np.ones(1), 1, tag=3)
        else:
            x = np.zeros(1)
            request = comm.ireceive(x, 0, tag=3)
            x[0] = 2
            request.wait()

    with pytest.raises(AssertionError, match="3-tagged message from rank 0 to rank 1 was written"):
        run_ranks(2, body)


def test_two_ranks_that_both_send_first_wait_no_longer_than_the_limit(sends: str) -> None:
    def body(comm: Communicator) -> None:
        comm.send(np.ones(1), 1 - comm.rank, tag=5)
        comm.receive(np.ones(1), 1 - comm.rank, tag=5)

    if sends == "buffered":
        run_ranks(2, body)
    else:
        with pytest.raises(AssertionError, match=r"waited 0.3 s for somebody to receive the 5-tag"):
            run_ranks(2, body)


@pytest.mark.parametrize(
    ("leave", "left"),
    [
        (lambda comm: comm.isend(np.ones(1), 0, tag=2), "send of the 2-tagged message from rank 0"),
        (lambda comm: comm.ireceive(np.ones(1), 0, tag=2), "receive of a 2-tagged message"),
    ],
    ids=["send", "receive"],
)
def test_what_never_completes_is_told(leave: Callable[[Communicator], object], left: str) -> None:
    with pytest.raises(AssertionError, match=f"never completed: the {left}"):
        run_ranks(1, leave)


def test_a_rank_that_fails_ends_those_that_wait_in_any_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_messages, "LIMIT_SECONDS", 20.0)

    def body(comm: Communicator) -> None:
        group = comm.split(0)
        assert group is not None
        if comm.rank == 0:
            raise ValueError("first")
        if comm.rank == 1:
            group.barrier()
        group.receive(np.ones(1), 0)

    begin = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        run_ranks(3, body)
    assert time.monotonic() - begin < 5
