"""Comparing: turns, the slowest rank, ratios and differences of pairs."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.measure import compare


def test_candidates_take_turns_and_every_second_round_runs_in_reverse() -> None:
    order: list[str] = []

    def candidate(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    seconds = compare.alternate({name: candidate(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert seconds == {"a": [1.0, 6.0, 7.0], "b": [2.0, 5.0, 8.0], "c": [3.0, 4.0, 9.0]}


def test_the_slowest_rank_counts_on_all_ranks() -> None:
    def body(comm: Communicator) -> tuple[float, float]:
        seconds = compare.seconds_per_call(comm, lambda: time.sleep(0.02 * comm.rank), calls=2)
        return seconds, compare.slowest(comm, float(comm.rank))

    found = run_ranks(3, body)
    assert len(set(found)) == 1
    seconds, rank = found[0]
    assert 0.04 <= seconds < 0.5
    assert rank == 2.0


def test_compare_leaves_the_warm_up_out_and_divides_by_the_repeats() -> None:
    calls: dict[str, int] = {"quick": 0, "slow": 0}

    def body(comm: Communicator) -> dict[str, list[float]]:
        def call(name: str, seconds: float) -> None:
            calls[name] += 1
            time.sleep(seconds)

        return compare.compare(
            comm,
            {"quick": lambda: call("quick", 0.0), "slow": lambda: call("slow", 0.01)},
            rounds=3,
            repeats=2,
            warm_up_rounds=1,
        )

    found = run_ranks(1, body)[0]
    assert calls == {"quick": 8, "slow": 8}
    assert [len(times) for times in found.values()] == [3, 3]
    assert all(0.01 <= seconds < 0.1 for seconds in found["slow"])
    assert compare.fastest(found, ["slow", "quick"]) == "quick"


def test_ratios_and_differences_are_of_pairs() -> None:
    """A machine that is ten times slower in one round changes neither."""
    ours, theirs = [2.0, 20.0, 9.0, 2.2, 2.0], [1.0, 10.0, 3.0, 1.0, 1.0]
    found = compare.ratio(ours, theirs)
    assert (found.median, found.low, found.high) == (2.0, 2.0, pytest.approx(2.2))
    assert str(found) == "2 (2-2.2)"
    assert compare.difference([3.0, 30.0], [1.0, 29.0]) == compare.Spread(1.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="zip"):
        compare.ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_spread_holds_its_median(count: int) -> None:
    values = list(np.random.default_rng(count).random(count))
    found = compare.spread(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.median == pytest.approx(np.median(values))
