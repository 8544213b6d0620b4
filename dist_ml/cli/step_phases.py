"""Where a run's steps take their time."""

from collections.abc import Mapping
from typing import Any

from dist_ml.train.stored_run import StoredRun


def step_phases(run: StoredRun) -> dict[str, float]:
    """Mean seconds of a step by phase: the summary's, or of a run that has none the logged
    lines'.
    """
    totals = numbers(run.summary.get("seconds_by_phase"))
    num_steps = run.summary.get("num_steps")
    if not totals or not isinstance(num_steps, int) or num_steps < 1:
        lines = [(line["step"], numbers(line.get("seconds"))) for line in run.steps]
        names = dict.fromkeys(name for _, phases in lines for name in phases)
        totals = {name: sum(phases.get(name, 0.0) for _, phases in lines) for name in names}
        num_steps = 1 + max((step for step, phases in lines if phases), default=0)
    return {name: seconds / num_steps for name, seconds in totals.items()}


def numbers(found: Any) -> dict[str, float]:
    """Those entries of what a file holds that are numbers; none where it is no mapping."""
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
