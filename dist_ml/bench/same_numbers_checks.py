"""How far runs of `dist-ml bench same_numbers` are from that of one process.

Differences are relative: of a loss to the reference's at the same step, of a weight to the largest
of its tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dist_ml.bench.form import Check, Record, least, most
from dist_ml.bench.reproduce import difference
from dist_ml.bench.same_numbers_part import Run

LIMITS = {"fp32": 2e-5, "fp64": 1e-10}


def record(run: Run, found: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, Any]:
    """One row; `found` and `alone` (one process) are losses and weights by precision."""
    row: dict[str, Any] = {
        "mesh": spelled(run.mesh),
        "schedule": run.schedule or "-",
        "exchange": run.exchange,
        "layout": run.layout or "-",
    }
    for precision, reference in alone.items():
        ours = found[precision]
        row[f"losses {precision}"] = difference(ours["losses"], reference["losses"])
        if reference["weights"]:
            row[f"weights {precision}"] = _weights_apart(ours["weights"], reference["weights"])
    return row


def _weights_apart(
    ours: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]
) -> float:
    assert list(ours) == list(reference), (list(ours), list(reference))
    return most(
        np.max(np.abs(np.subtract(ours[name], theirs))) / np.max(np.abs(theirs))
        for name, theirs in reference.items()
    )


def checks_of(records: Sequence[Record], precisions: Sequence[str]) -> list[Check]:
    """Of the worst run."""
    return [
        Check(
            f"largest relative difference to one process, {precision}",
            most(
                row[f"{what} {precision}"]
                for row in records
                for what in ("losses", "weights")
                if f"{what} {precision}" in row
            ),
            LIMITS[precision],
            "lower",
        )
        for precision in precisions
    ]


def dropout_check(alone: Mapping[str, Any], without: Mapping[str, Any]) -> Check:
    """That dropout takes part in what is compared: how far it moves the losses of one process."""
    moved = least(
        difference(without[precision]["losses"], found["losses"])
        for precision, found in alone.items()
    )
    return Check("relative difference that dropout makes to one process", moved, 1e-3, "higher")


def spelled(mesh: Sequence[int]) -> str:
    """`2x4x1`: data, pipeline, operator."""
    return "x".join(map(str, mesh))
