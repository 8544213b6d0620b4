"""The form in which every benchmark states what it measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from dist_ml.measure.compare import spread

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One figure against its limit. The name is stable and says what is checked: `step over a bare
    loop`.
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


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Columns of a record: the middle of `seconds` and the quartiles."""
    middle = spread(seconds)
    return {"ms": 1e3 * middle.median, "low": 1e3 * middle.low, "high": 1e3 * middle.high}


def most(values: Iterable[float]) -> float:
    """The largest, or NaN, which passes no check, where one is NaN. At least one value."""
    return float(np.max(list(values)))


def least(values: Iterable[float]) -> float:
    """The smallest, or NaN, which passes no check, where one is NaN. At least one value."""
    return float(np.min(list(values)))
