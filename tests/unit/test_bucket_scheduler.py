"""Buckets leave in one order on all ranks, whatever order gradients become final in."""

import threading
import time
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.comm.request import Request
from dist_ml.data_parallel.bucket_scheduler import BucketScheduler
from dist_ml.data_parallel.buckets import cut
from dist_ml.data_parallel.drivers import (
    Driver,
    InlineDriver,
    PollingDriver,
    ThreadDriver,
    drain,
)
from dist_ml.partition import Range

RANGES = [Range(0, 3), Range(3, 5), Range(5, 9), Range(9, 10)]
BUCKETS = [Range(5, 10), Range(3, 5), Range(0, 3)]


class Counting:
    """A pending message that has arrived after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def Test(self) -> bool:  # noqa: N802
        self.left -= 1
        return self.left <= 0

    def Wait(self) -> None:  # noqa: N802
        self.left = 0


@given(order=st.permutations(range(4)), final=st.integers(0, 4))
def test_buckets_are_launched_in_order_each_once(order: list[int], final: int) -> None:
    launched: list[int] = []
    scheduler = BucketScheduler(RANGES, BUCKETS, InlineDriver(launched.append))
    for _ in range(2):
        launched.clear()
        scheduler.begin()
        seen: set[int] = set()
        for parameter in order[:final]:
            scheduler.ready(parameter)
            seen.add(parameter)
            expected = 0
            for members in ({2, 3}, {1}, {0}):
                if not members <= seen:
                    break
                expected += 1
            assert launched == list(range(expected)) == list(range(scheduler.num_launched))
        scheduler.finish()
        assert launched == [0, 1, 2]


def test_before_begin_and_after_finish_nothing_is_launched() -> None:
    launched: list[int] = []
    scheduler = BucketScheduler(RANGES, BUCKETS, InlineDriver(launched.append))
    scheduler.ready(3)
    scheduler.begin()
    scheduler.finish()
    scheduler.ready(0)
    assert launched == [0, 1, 2]


def test_cut_makes_buckets_of_whole_parameters_from_the_last() -> None:
    assert cut(RANGES, 12, 4) == [Range(5, 12), Range(0, 5)]
    assert cut(RANGES, 12, 1) == [Range(9, 12), Range(5, 9), Range(3, 5), Range(0, 3)]
    assert cut(RANGES, 12, 100) == [Range(0, 12)]


def test_polling_moves_what_is_in_flight_and_waits_at_the_end() -> None:
    pending = [Counting(2), Counting(100), Counting(100)]
    ended: list[int] = []

    def start(number: int) -> Request:
        return Request([pending[number]], finish=lambda: ended.append(number))

    scheduler = BucketScheduler(RANGES, BUCKETS, PollingDriver(start))
    scheduler.begin()
    scheduler.ready(3)
    scheduler.ready(2)
    assert ended == []
    scheduler.ready(1)
    assert ended == [0]
    scheduler.finish()
    assert ended == [0, 1, 2]


def test_a_thread_runs_buckets_in_order_beside_the_backward_pass() -> None:
    ran: list[tuple[int, str]] = []
    driver = ThreadDriver(lambda number: ran.append((number, threading.current_thread().name)))
    scheduler = BucketScheduler(RANGES, BUCKETS, driver)
    scheduler.begin()
    for parameter in (0, 1, 2, 3):
        scheduler.ready(parameter)
    scheduler.finish()
    assert [number for number, _ in ran] == [0, 1, 2]
    assert all(name.startswith("gradient-exchange") for _, name in ran)
    scheduler.close()


def _fails(number: int) -> None:
    if number == 1:
        raise RuntimeError("the link is down")


@pytest.mark.parametrize("make", [InlineDriver, ThreadDriver], ids=["inline", "thread"])
def test_the_first_error_ends_the_step(make: Callable[[Callable[[int], None]], Driver]) -> None:
    scheduler = BucketScheduler(RANGES, BUCKETS, make(_fails))
    scheduler.begin()
    with pytest.raises(RuntimeError, match="the link is down"):
        scheduler.finish()
    scheduler.close()


def test_drain_takes_out_what_has_ended_and_stops_when_it_is_enough() -> None:
    in_flight = deque([Request([Counting(1)]), Request([Counting(3)])])
    drain(in_flight, threading.Event(), (), lambda: len(in_flight) < 2)
    assert len(in_flight) == 1
    soon = threading.Event()
    soon.set()
    drain(in_flight, soon)
    assert not in_flight


def test_drain_hurries_once_it_is_told_to() -> None:
    soon = threading.Event()
    threading.Timer(0.05, soon.set).start()
    start = time.monotonic()
    drain(deque([Request([Counting(200)])]), soon)
    assert time.monotonic() - start < 5
