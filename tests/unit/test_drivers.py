"""How exchanges under way end: in order, at the first error, when a rank dies, when a run stops
early; and what is told of the time that was hidden.
"""

import os
import threading
import time
from collections import deque

import pytest
import torch
from dead_peer import dead_peer
from thread_world import run_ranks

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import Peer, death_among, death_soon, is_alive, this_process
from dist_ml.comm.polled_request import PolledRequest
from dist_ml.comm.request import Request
from dist_ml.data_parallel.dense_reducer import DenseReducer, _covered
from dist_ml.data_parallel.drivers import PollingDriver, ThreadDriver, drain
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.errors import CommunicationError


class Pending:
    """A message that arrives when it is told to, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.arrived, self.looks, self.error = threading.Event(), 0, error

    def Test(self) -> bool:  # noqa: N802
        self.looks += 1
        if self.error is not None:
            raise self.error
        return self.arrived.is_set()

    def Wait(self) -> None:  # noqa: N802
        if self.error is not None:
            raise self.error
        assert self.arrived.wait(20)


@pytest.fixture(scope="module")
def dead() -> Peer:
    return dead_peer(3)


class TestThreadDriver:
    def test_after_the_first_error_nothing_more_of_the_step_is_run(self) -> None:
        """What follows a failed exchange would not fit the other ranks', however long the backward
        pass goes on before anybody asks; the next step's would.
        """
        ran: list[int] = []

        def run(number: int) -> None:
            ran.append(number)
            if number == 1:
                raise RuntimeError("the link is down")

        driver = ThreadDriver(run)
        for number in range(3):
            driver.launch(number)
        time.sleep(0.05)
        driver.launch(3)
        with pytest.raises(RuntimeError, match="the link is down"):
            driver.finish()
        driver.launch(0)
        driver.finish()
        assert ran == [0, 1, 0]
        driver.close()

    def test_closing_early_drops_what_has_not_begun_and_waits_for_nobody(self) -> None:
        ran: list[int] = []
        gate, begun = threading.Event(), threading.Event()

        def run(number: int) -> None:
            ran.append(number)
            begun.set()
            assert gate.wait(20)

        driver = ThreadDriver(run)
        driver.launch(0)
        driver.launch(1)
        assert begun.wait(20)
        start = time.monotonic()
        driver.close()
        assert time.monotonic() - start < 5
        gate.set()
        with pytest.raises(RuntimeError, match="after shutdown"):
            driver.launch(2)
        assert ran == [0]

    def test_the_threads_name_tells_stacks_what_it_is(self) -> None:
        names: list[str] = []
        driver = ThreadDriver(lambda _: names.append(threading.current_thread().name), "exchange")
        driver.launch(0)
        driver.finish()
        driver.close()
        assert names[0].startswith("exchange")


class TestPollingDriver:
    def test_a_look_moves_all_and_the_end_waits_in_the_order_of_buckets(self) -> None:
        pending = [Pending(), Pending()]
        ended: list[int] = []
        driver = PollingDriver(
            lambda number: Request([pending[number]], finish=lambda: ended.append(number))
        )
        driver.launch(0)
        driver.launch(1)
        pending[1].arrived.set()
        driver.poll()
        assert [one.looks for one in pending] == [1, 1]
        assert ended == [1]
        pending[0].arrived.set()
        driver.finish()
        assert ended == [1, 0]
        driver.finish()
        assert ended == [1, 0], "each once"

    def test_an_error_is_raised_where_it_is_seen_and_not_again(self) -> None:
        driver = PollingDriver(lambda _: Request([Pending(CommunicationError("gone"))]))
        driver.launch(0)
        with pytest.raises(CommunicationError, match="gone"):
            driver.poll()
        with pytest.raises(CommunicationError, match="gone"):
            driver.finish()
        driver.finish()


class TestDrain:
    def test_a_dead_rank_ends_the_wait_with_its_name(self, dead: Peer) -> None:
        soon = threading.Event()
        soon.set()
        with pytest.raises(CommunicationError, match=rf"rank 3 \(process {dead.pid}"):
            drain(deque([Request([Pending()])]), soon, [this_process(0), dead])

    def test_what_ended_out_of_order_leaves_when_those_before_it_have(self) -> None:
        pending = [Pending(), Pending(), Pending()]
        requests = deque(Request([one]) for one in pending)
        first = requests[0]
        pending[1].arrived.set()
        seen: list[int] = []

        def stop() -> bool:
            seen.append(len(requests))
            if len(seen) == 2:
                pending[0].arrived.set()
            return len(seen) == 4

        drain(requests, threading.Event(), (), stop)
        assert seen[:2] == [3, 3]
        assert seen[-1] == 1
        assert first not in requests

    def test_an_error_of_a_message_is_raised(self) -> None:
        with pytest.raises(CommunicationError, match="truncated"):
            drain(deque([Request([Pending(CommunicationError("truncated"))])]), threading.Event())


class TestPeers:
    def test_a_process_of_another_namespace_is_taken_to_live(self, dead: Peer) -> None:
        """Its number may be anybody's here."""
        assert not is_alive(dead)
        assert is_alive(dead._replace(namespace="pid:[1]"))

    def test_a_zombie_is_dead(self) -> None:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        deadline = time.monotonic() + 10
        peer = this_process(1)._replace(pid=pid)
        while is_alive(peer) and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            assert not is_alive(peer)
            words = death_among([this_process(0), peer])
            assert words is not None
            assert words.startswith(f"rank 1 (process {pid} on this node) died while others")
        finally:
            os.waitpid(pid, 0)
        assert death_among([this_process(0)]) is None

    def test_a_process_that_is_still_dying_is_waited_for(self) -> None:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "0.3"], {})
        peer = this_process(1)._replace(pid=pid)
        assert death_among([peer]) is None
        try:
            words = death_soon([this_process(0), peer])
            assert words is not None
            assert words.startswith(f"rank 1 (process {pid}")
        finally:
            os.waitpid(pid, 0)
        start = time.monotonic()
        assert death_soon([this_process(0)]) is None
        assert time.monotonic() - start < 5

    def test_what_mpi_raises_tells_who_has_died(self, dead: Peer) -> None:
        class Broken:
            def Test(self) -> bool:  # noqa: N802
                raise RuntimeError("process_vm_readv failed")

        with pytest.raises(CommunicationError, match="died while others waited"):
            PolledRequest(Broken(), [this_process(0), dead]).Wait()
        with pytest.raises(RuntimeError, match="process_vm_readv"):
            PolledRequest(Broken(), [this_process(0)]).Wait()


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 5)], 4),
        ([(4, 5), (1, 2)], 2),
        ([(1, 9), (2, 3), (4, 5)], 8),
        ([(1, 2), (2, 3)], 2),
    ],
    ids=str,
)
def test_time_under_way_together_counts_once(
    spans: list[tuple[float, float]], covered: float
) -> None:
    assert _covered(spans) == covered


@pytest.mark.parametrize("overlap", ["thread", "none", "poll"])
def test_what_passed_during_the_backward_pass_is_told_as_hidden(overlap: str) -> None:
    """The first of two buckets is final long before the backward pass is over."""

    def body(comm: Communicator) -> tuple[dict[str, float], dict[str, float]]:
        parameters = [torch.nn.Parameter(torch.ones(40, dtype=torch.float64)) for _ in range(2)]
        reducer = DenseReducer(
            FlatGradients(parameters, 1), family.make("ring", comm), overlap, bucket_bytes=8  # type: ignore[arg-type]
        )  # fmt: skip
        assert len(reducer.buckets) == 2
        before = reducer.diagnostics()
        for _ in range(2):  # the second step's figures are its own
            reducer.begin()
            reducer.start()
            parameters[1].sum().backward()
            time.sleep(0.05)
            parameters[0].sum().backward()
            reducer.finish()
            assert all((p.grad == comm.size).all() for p in parameters)
        told = reducer.diagnostics()
        assert len(reducer._spans) == (2 if overlap == "thread" else 0)
        reducer.close()
        return before, told

    for before, told in run_ranks(2, body):
        assert before == {}
        if overlap == "thread":
            assert 0 < told["hidden_seconds"] <= told["exchange_seconds"] < 20
        else:
            assert told == {}
