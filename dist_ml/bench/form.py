"""The form in which every benchmark states what it measured."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One figure against its limit. The name is stable and begins with issue letter and number: `A2
    step overhead`.
    """

    name: str
    value: float
    limit: float
    better: Literal["lower", "higher"]

    @property
    def passed(self) -> bool:
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.better == "lower" else "≥"
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.name} {self.value:.4g} {sign} {self.limit:.4g} {verdict}"


@dataclass(frozen=True)
class Result:
    """What one run of a benchmark measured: flat records (rows of its tables) and the checks on
    them.
    """

    bench: str
    records: Sequence[Record]
    checks: Sequence[Check] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        checks = [{**vars(check), "passed": check.passed} for check in self.checks]
        return {
            "bench": self.bench,
            "environment": dict(environment),
            "records": list(self.records),
            "checks": checks,
        }


def alternate(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all candidates in turn, `rounds` times, so that a machine that slows down slows all
    of them.

    Each candidate returns its own seconds. Every second round runs in reverse order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            seconds[name].append(candidates[name]())
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the rounds' own ratios: both of a pair saw the machine in the same state."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
