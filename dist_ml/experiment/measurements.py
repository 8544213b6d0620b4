"""What the runs of an experiment measured, by point, and what follows from it over ranks."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.experiment.folder import Run
from dist_ml.experiment.points import Point, scaling_axis, series
from dist_ml.measure import scaling
from dist_ml.measure.compare import Spread, spread
from dist_ml.measure.scaling import ScalingFit

# Of summary.json, as they are called there.
MEASURES = (
    "seconds",
    "samples_per_second",
    "communication_share",
    "bubble",
    "planned_bubble",
    "words_sent",
)
RATE = "samples_per_second"
_BY_AXIS = "words_by_axis"


@dataclass(frozen=True)
class MeasuredPoint:
    """A point and the summaries of those of its runs that finished, by repetition."""

    point: Point
    summaries: Mapping[int, Mapping[str, Any]]
    problems: Mapping[int, str]  # of the runs that did not finish, by repetition

    def values(self, name: str) -> dict[int, float]:
        """One measure by repetition; `words_by_axis.data` and the like name parts of one."""
        group, _, part = name.partition(".")
        found = {}
        for repetition, summary in self.summaries.items():
            value = summary.get(group)
            value = value.get(part) if part and isinstance(value, Mapping) else value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[repetition] = float(value)
        return found

    def spread(self, name: str) -> Spread | None:
        """Median and spread over the repetitions; None where no run has the measure."""
        values = list(self.values(name).values())
        return spread(values) if values else None

    def names(self) -> list[str]:
        """The measures that a run of this point has."""
        axes = {
            axis: None
            for summary in self.summaries.values()
            if isinstance(summary.get(_BY_AXIS), Mapping)
            for axis in summary[_BY_AXIS]
        }
        names = [*MEASURES, *(f"{_BY_AXIS}.{axis}" for axis in axes)]
        return [name for name in names if self.values(name)]


@dataclass(frozen=True)
class Curve:
    """Points that differ in their ranks alone, fewest first, and how they grow."""

    settings: Mapping[str, str]  # what they have in common
    points: Sequence[MeasuredPoint]

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings.items())

    @property
    def throughputs(self) -> dict[int, float]:
        """Median samples a second, by ranks."""
        medians = {each.point.ranks: each.spread(RATE) for each in self.points}
        return {ranks: rate.median for ranks, rate in medians.items() if rate and rate.median > 0}

    @property
    def base_ranks(self) -> int | None:
        """What speed-ups are over: the fewest ranks that were measured, where there are more."""
        return min(self.throughputs) if len(self.throughputs) > 1 else None

    def speed_ups(self) -> dict[int, Spread]:
        """Samples a second over those of the fewest ranks, by ranks, of each repetition's own pair:
        both saw the machine in the same state.
        """
        return self._ratios(scaling.speed_ups)

    def efficiencies(self) -> dict[int, Spread]:
        """Speed-up over the ratio of ranks, likewise."""
        return self._ratios(scaling.efficiencies)

    def fits(self) -> list[ScalingFit]:
        """The laws of scaling that there are enough points for, the best first."""
        return scaling.fit_all(self.throughputs)

    def _ratios(self, ratio: Callable[[dict[int, float]], dict[int, float]]) -> dict[int, Spread]:
        found: dict[int, list[float]] = {}
        known = self.throughputs
        rates = {each.point.ranks: each.values(RATE) for each in self.points}
        for repetition, rate in rates.get(self.base_ranks or 0, {}).items():
            together = {p: rates[p][repetition] for p in known if repetition in rates[p]}
            for ranks, value in ratio(together).items() if rate > 0 else ():
                found.setdefault(ranks, []).append(value)
        return {ranks: spread(values) for ranks, values in found.items()}


def measure(points: Sequence[Point], runs: Sequence[Run]) -> list[Curve]:
    """Read all run folders; never raises for what is broken there."""
    summaries: dict[int, dict[int, Mapping[str, Any]]] = {point.number: {} for point in points}
    problems: dict[int, dict[int, str]] = {point.number: {} for point in points}
    for run in runs:
        number, stored = run.point.number, run.stored() if run.folder.is_dir() else None
        if stored is not None and stored.status == "finished":
            summaries[number][run.repetition] = stored.summary
        else:
            why = f"{stored.status}: {stored.problem}" if stored else "it has not run"
            problems[number][run.repetition] = why
    measured = {
        point.number: MeasuredPoint(point, summaries[point.number], problems[point.number])
        for point in points
    }
    groups = series(points, scaling_axis(points))
    return [
        Curve(dict(settings), [measured[point.number] for point in group])
        for settings, group in groups.items()
    ]


def relative_rates(curves: Sequence[Curve]) -> dict[int, float]:
    """Of each point that has one: its median samples a second over those of the first curve's point
    with as many ranks, by the point's number. Empty for a single curve.
    """
    if len(curves) < 2:
        return {}
    first = curves[0].throughputs
    return {
        each.point.number: statistics.median(each.values(RATE).values()) / first[each.point.ranks]
        for curve in curves
        for each in curve.points
        if each.values(RATE) and each.point.ranks in first
    }
