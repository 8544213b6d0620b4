"""Seconds by phase."""

import time
from types import TracebackType
from typing import NamedTuple


class Phases:
    """Sums the seconds spent in named phases; entering and leaving one costs under a microsecond.

    Phases follow one another and do not nest: `with phases("forward"): …`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._start = 0.0

    def __call__(self, name: str) -> "Phases":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds[self._name] = (
            self.seconds.get(self._name, 0.0) + time.perf_counter() - self._start
        )

    def take(self) -> dict[str, float]:
        """The seconds since the last `take`, by phase."""
        taken, self.seconds = self.seconds, {}
        return taken


class Span(NamedTuple):
    """One time that a phase lasted, in nanoseconds of `time.monotonic_ns`."""

    name: str
    start: int
    stop: int


class RecordedPhases(Phases):
    """Phases of which each time is kept as well, while `spans` is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] | None = None
        self._start_ns = 0

    def __enter__(self) -> None:
        super().__enter__()
        self._start_ns = time.monotonic_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.spans is not None:
            self.spans.append(Span(self._name, self._start_ns, time.monotonic_ns()))
        super().__exit__(kind, error, trace)
