"""Clocks of different ranks as one."""

import time

import numpy as np
import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.trace import clock
from dist_ml.trace.clock import Clock, Reading
from tests.thread_world import run_ranks

OFFSETS = (0, 5_000_000_000, 5_000_000_000, -7_000_000_000)  # of each rank's clock; two share one
NAMES = ("a", "b", "b", "c")
DRIFT = 0.01


def test_a_moment_is_the_same_on_all_ranks_within_the_stated_error() -> None:
    begin = time.monotonic_ns()

    def body(comm: Communicator) -> tuple[Clock, list[int]]:
        offset = OFFSETS[comm.rank]
        rate = 1 + DRIFT if offset else 1.0

        def now() -> int:
            return begin + offset + int(rate * (time.monotonic_ns() - begin))

        first = clock.read(comm, now, NAMES[comm.rank])
        moments = []
        for _ in range(3):
            time.sleep(0.01)
            true = time.monotonic_ns()
            moments.append((true, begin + offset + int(rate * (true - begin))))
        times = Clock(first, clock.read(comm, now, NAMES[comm.rank]))
        return times, [times.reference(own) - true for true, own in moments]

    for rank, (times, wrong) in enumerate(run_ranks(4, body)):
        assert max(map(abs, wrong)) <= 1.05 * times.error + 1  # it drifts within a round trip, too
        assert (times.error == 0) == (rank == 0)
        elapsed = times.last.moment - times.first.moment
        unsure = 1.1 * (times.first.error + times.last.error) / elapsed
        assert times.drift == pytest.approx(-DRIFT * bool(rank), abs=unsure + 1e-3)


def test_ranks_of_one_kernel_need_no_messages() -> None:
    def body(comm: Communicator) -> tuple[Reading, int]:
        return clock.read(comm), comm.traffic.total().messages

    for reading, messages in run_ranks(3, body):
        assert reading[1:] == (0, 0)
        assert messages == 0


def test_the_same_clock_has_the_same_name_and_needs_a_file_to_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    assert clock.clock_name() == clock.clock_name()
    monkeypatch.setattr(clock, "_BOOT", clock.Path("/nowhere"))
    assert clock.clock_name().split()[-1].isdigit()


def test_without_time_between_the_readings_there_is_no_drift() -> None:
    times = Clock(Reading(5, 10, 2), Reading(5, 14, 1))
    assert (times.reference(100), times.error) == (110, 2)


def test_the_offset_is_the_middle_of_the_shortest_round_trip() -> None:
    moments = iter([0, 100, 130, 200, 210, *(n * 1000 for n in range(1, 31))])

    class Asking:
        """Rank 1 of 2, whose rank 0 answers with 5000, then 5100, and so on."""

        rank, asked = 1, 0

        def allgather_objects(self, value: object) -> list[object]:
            return [value if isinstance(value, Reading) else "rank 0", value]

        def send(self, number: object, rank: int, tag: int) -> None:
            assert rank == 0

        def receive(self, number: np.ndarray, rank: int, tag: int) -> None:
            number[0] = 5000 + 100 * self.asked
            self.asked += 1

    found = clock.read(Asking(), lambda: next(moments), "rank 1")  # type: ignore[arg-type]
    assert found == Reading(200, 5100 - 205, 5)
