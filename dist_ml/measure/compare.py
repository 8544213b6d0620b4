"""Comparing: candidates measured in turn in one run, by the slowest rank, and ratios of the rounds'
own pairs, so that a machine that slows down slows all of them.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Ranks(Protocol):
    """What comparing needs of a communicator."""

    def barrier(self) -> None: ...

    def allreduce(self, x: Any, op: Any = ..., /) -> None: ...


def slowest(comm: Ranks, seconds: float) -> float:
    """The largest of all ranks' `seconds`, on all ranks. Collective: one element is reduced."""
    largest = np.array([seconds])
    comm.allreduce(largest, "max")
    return float(largest[0])


def seconds_per_call(comm: Ranks, call: Callable[[], object], calls: int = 1) -> float:
    """The slowest rank's mean over `calls` calls that begin together, the same number on all ranks.
    Collective.
    """
    comm.barrier()
    return slowest(comm, own_seconds(call, calls))


def own_seconds(call: Callable[[], object], calls: int = 1) -> float:
    """The mean over `calls` calls in this process alone."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def alternate(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all candidates in turn, `rounds` times; each returns its own seconds. Every second
    round runs in reverse order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            seconds[name].append(candidates[name]())
    return seconds


def compare(
    comm: Ranks,
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    repeats: int = 1,
    warm_up_rounds: int = 1,
) -> dict[str, list[float]]:
    """Seconds a call of the slowest rank, by candidate and round, after `warm_up_rounds` that are
    not counted. Collective.

    repeats: calls that are timed together, for those too short to be timed alone
    """

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds_per_call(comm, call, repeats)

    candidates = {name: timed(call) for name, call in calls.items()}
    alternate(candidates, warm_up_rounds)
    return alternate(candidates, rounds)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it; with fewer than four values the least and the most."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """The middle of `values` and how far half of them lie from it."""
    middle = statistics.median(values)
    if len(values) < 4:
        return Spread(middle, min(values), max(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of the rounds' own ratios: both of a pair saw the machine in the same state."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def difference(minuends: Sequence[float], subtrahends: Sequence[float]) -> Spread:
    """Of the rounds' own differences, for the same reason."""
    return spread([a - b for a, b in zip(minuends, subtrahends, strict=True)])


@dataclass(frozen=True)
class ConfidenceInterval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


# Student's t of 1, 2, … 30 degrees of freedom that 97.5 % lie below, and the normal distribution's.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


def mean_interval(values: Sequence[float]) -> ConfidenceInterval:
    """Of at least two independent values that are about normally distributed."""
    degrees = len(values) - 1
    quantile = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    mean = statistics.mean(values)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return ConfidenceInterval(mean, mean - half, mean + half)


def fastest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The one of `names` with the least median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))
