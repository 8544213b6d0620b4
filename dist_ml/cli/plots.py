"""Loss curves and step-time breakdown of runs. Needs matplotlib: the `plot` extra."""

from pathlib import Path
from typing import Any

import matplotlib

from dist_ml.cli.comparison import Row
from dist_ml.cli.step_phases import step_phases
from dist_ml.errors import ConfigError, DataError
from dist_ml.experiment.plots import literal

matplotlib.use("agg")
from matplotlib import pyplot as plt

_DPI = 120
_WIDTH = 8.0
_NAMED_RUNS = 12  # more would cover the curves
_LONGEST_LABEL = 56  # characters, which leave the plot its place


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw what the runs have to show as PNG files and return these; `DataError` when no run has
    logged a step.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--plot {folder} can't be made ({error.strerror or error}); choose another folder"
        ) from error
    drawn = figures(rows)
    if not drawn:
        raise DataError(
            "nothing to plot: none of these runs has a readable step in its metrics.jsonl"
        )
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=_DPI)
        plt.close(figure)
    return [folder / f"{name}.png" for name in drawn]


def figures(rows: list[Row]) -> dict[str, Any]:
    """`loss` and `step_time`, of which those that the runs have something for. The caller closes
    them.
    """
    made = {"loss": _losses(rows), "step_time": _step_times(rows)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _losses(rows: list[Row]) -> Any:
    """Training loss over steps, a line a run; test loss dashed in the same colour."""
    curves = [(row, _curve(row, "loss"), _curve(row, "test_loss")) for row in rows]
    curves = [curve for curve in curves if curve[1][0] or curve[2][0]]
    if not curves:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 4.5), layout="constrained")
    for row, train, test in curves:
        (line,) = axes.plot(*train, linewidth=1.2, label=_label(row))
        axes.plot(*test, linewidth=1.2, linestyle="--", color=line.get_color())
    axes.set(
        xlabel="step",
        ylabel="loss",
        yscale="log",
        title="Loss in training" + (" (dashed: test)" if any(c[2][0] for c in curves) else ""),
    )
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    if 1 < len(curves) <= _NAMED_RUNS:
        axes.legend(fontsize="small")
    return figure


def _step_times(rows: list[Row]) -> Any:
    """Milliseconds of a step by phase, a bar a run."""
    breakdowns = [(row, phases) for row in rows if (phases := step_phases(row.run))]
    if not breakdowns:
        return None
    names = list(dict.fromkeys(name for _, phases in breakdowns for name in phases))
    figure, axes = plt.subplots(figsize=(_WIDTH, 1.6 + 0.4 * len(breakdowns)), layout="constrained")
    labels = [_label(row) for row, _ in breakdowns]
    left = [0.0] * len(breakdowns)
    for name in names:
        widths = [1000 * phases.get(name, 0.0) for _, phases in breakdowns]
        axes.barh(range(len(labels)), widths, left=left, label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(
        xlabel="milliseconds a step (rank 0)",
        title="Where a step's time goes",
        yticks=range(len(labels)),
        yticklabels=labels,
    )
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x", linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=min(6, len(names)), fontsize="small")
    return figure


def _curve(row: Row, name: str) -> tuple[list[int], list[float]]:
    points = [
        (line["step"], line[name])
        for line in row.run.steps
        if isinstance(line.get(name), (int, float)) and "step" in line
    ]
    return [step for step, _ in points], [value for _, value in points]


def _label(row: Row) -> str:
    """What tells this run from the others, shortly: its name where that takes many words."""
    words = [f"{key}={row.cell(key)}" for key in row.differing]
    if row.ranks is not None:
        words.insert(0, f"{row.ranks} rank{'s' if row.ranks > 1 else ''}")
    text = " ".join(words)
    if not row.differing or len(text) > _LONGEST_LABEL:
        name = row.name if len(row.name) <= _LONGEST_LABEL else f"…{row.name[1 - _LONGEST_LABEL :]}"
        text = name if row.differing else f"{name} ({text})"
    return literal(text)
