"""The thread that lets communication go on while a rank multiplies."""

import threading
import time
from collections.abc import Callable

import pytest

from dist_ml.comm.request import Request
from dist_ml.gemm import progress_thread
from dist_ml.gemm.progress_thread import ProgressThread

LIMIT_SECONDS = 10.0


class Countdown:
    """What a transport's request would be: complete after so many tests."""

    def __init__(self, tests: int) -> None:
        self.left = tests
        self.tested_by: set[str] = set()

    def Test(self) -> bool:  # noqa: N802
        self.tested_by.add(threading.current_thread().name)
        self.left -= 1
        return self.left <= 0

    def Wait(self) -> None:  # noqa: N802
        self.left = 0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "not within the limit"
        time.sleep(0.001)


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gemm-progress"]


def test_polled_requests_complete_without_a_wait() -> None:
    first, second = Countdown(3), Countdown(2)
    with ProgressThread() as progress:
        progress.poll([Request([first]), Request([second])])
        until(lambda: first.left <= 0 and second.left <= 0)
    assert first.tested_by == second.tested_by == {"gemm-progress"}


def test_what_is_polled_later_is_found_by_the_same_thread() -> None:
    with ProgressThread() as progress:
        for _ in range(3):
            pending = Countdown(2)
            progress.poll([Request([pending])])
            until(lambda pending=pending: pending.left <= 0)  # type: ignore[misc]
            assert len(running()) == 1


def test_there_is_no_thread_before_there_is_something_to_poll() -> None:
    with ProgressThread() as progress:
        progress.poll([])
        progress.wait([])
        assert running() == []


def test_waiting_takes_a_request_from_the_thread() -> None:
    finished: list[str] = []
    pending = Countdown(10**9)
    request = Request([pending]).then(lambda: finished.append(threading.current_thread().name))
    with ProgressThread() as progress:
        progress.poll([request])
        until(lambda: bool(pending.tested_by))
        progress.wait([request])
        assert pending.left == 0
    assert finished == [threading.current_thread().name]


def test_the_thread_ends_with_the_context_though_requests_are_left() -> None:
    with ProgressThread() as progress:
        progress.poll([Request([Countdown(10**9)])])
        assert len(running()) == 1
    assert running() == []


def test_the_thread_ends_where_the_body_fails() -> None:
    def body() -> None:
        with ProgressThread() as progress:
            progress.poll([Request([Countdown(10**9)])])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert running() == []


def test_tests_become_rarer_where_all_had_arrived_and_denser_where_not() -> None:
    progress = ProgressThread()
    for _ in range(5):
        progress.wait([Request([Countdown(1)])])
    assert progress._period == progress_thread._LONGEST_SECONDS
    for _ in range(5):
        progress.wait([Request([Countdown(10**9)])])
    assert progress._period == progress_thread._SHORTEST_SECONDS
