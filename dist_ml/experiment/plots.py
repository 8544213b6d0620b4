"""A report's plots. Needs matplotlib: the `plot` extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from dist_ml.errors import ConfigError
from dist_ml.experiment.markdown_table import printable
from dist_ml.experiment.report import Report
from dist_ml.measure.scaling import ScalingFit

matplotlib.use("agg")
from matplotlib import pyplot as plt

_DPI = 120
_WIDTH = 8.0
_CURVE_POINTS = 60  # of a fitted law
_SHOWN_FITS = 4  # curves whose laws are drawn, too; more would cover each other


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what the report has as PNG files and return these; none where nothing was measured."""
    drawn = []
    for name, figure in figures(report).items():
        file = folder / f"{name}.png"
        try:
            figure.savefig(file, dpi=_DPI)
        except OSError as error:
            raise ConfigError(
                f"{file} can't be written: {error.strerror or error}; make room there"
            ) from error
        finally:
            plt.close(figure)
        drawn.append(file)
    return drawn


def figures(report: Report) -> dict[str, Any]:
    """Of each plot that the report has something for, by name. The caller closes them."""
    made = {
        "speed_up": _over_ranks(report, "speed_up", "speed-up"),
        "efficiency": _over_ranks(report, "efficiency", "efficiency"),
        "samples_per_second": _rates(report),
        "communication": _shares(report, {"communication": "communication_share"}),
        "bubble": _shares(report, {"measured": "bubble", "planned": "planned_bubble"}),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def literal(text: str) -> str:
    """The text as matplotlib shows it as it stands: a dollar would begin a formula."""
    return printable(text).replace("$", r"\$")


def _over_ranks(report: Report, name: str, label: str) -> Any:
    """A line for each curve with its spread, what is ideal, and the better law of each."""
    curves = [(curve, _of_curve(report, curve)) for curve in report["curves"]]
    curves = [(curve, [p for p in points if p[name]]) for curve, points in curves]
    curves = [(curve, points) for curve, points in curves if len(points) > 1]
    if not curves:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 5.0), layout="constrained")
    for curve, points in curves:
        ranks = [point["ranks"] for point in points]
        values = [point[name] for point in points]
        fitted = curve["fits"] and len(curves) <= _SHOWN_FITS
        drawn = axes.errorbar(
            ranks,
            [value["median"] for value in values],
            yerr=_error_bars(values),
            marker="o",
            markersize=4,
            capsize=3,
            linestyle="none" if fitted else "-",
            linewidth=1.2,
            label=literal(curve["title"]) or "measured",
        )
        if fitted:
            fit = _fit(curve["fits"][0])
            across = _across(ranks)
            base = curve["base_ranks"]
            grown = [fit.throughput(p) / fit.throughput(base) for p in across]
            if name == "efficiency":
                grown = [each * base / p for each, p in zip(grown, across, strict=True)]
            colour = drawn.lines[0].get_color()
            axes.plot(across, grown, "--", color=colour, linewidth=1, label=fit.law)
    most = max(point["ranks"] for _, points in curves for point in points)
    fewest = min(curve["base_ranks"] for curve, _ in curves)
    ideal = [1, most / fewest] if name == "speed_up" else [1, 1]
    axes.plot([fewest, most], ideal, ":", color="grey", linewidth=1, label="ideal")
    axes.set(xlabel="ranks", ylabel=label, ylim=(0, None))
    axes.set_title(literal(f"{report['experiment']['name']}: {label} over ranks"))
    axes.set_xticks(sorted({point["ranks"] for _, points in curves for point in points}))
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize="small")
    return figure


def _rates(report: Report) -> Any:
    """Samples a second of every point."""
    points = [p for p in report["points"] if "samples_per_second" in p["measures"]]
    if not points:
        return None
    figure, axes = _bars(points)
    values = [point["measures"]["samples_per_second"] for point in points]
    medians = [value["median"] for value in values]
    axes.barh(range(len(points)), medians, xerr=_error_bars(values), height=0.7, capsize=3)
    axes.set(xlabel="samples/s")
    return figure


def _shares(report: Report, names: Mapping[str, str]) -> Any:
    """Shares of the time, in percent, a bar for each of `names` (label to measure)."""
    points = [p for p in report["points"] if any(name in p["measures"] for name in names.values())]
    if not points:
        return None
    figure, axes = _bars(points)
    height = 0.8 / len(names)
    for number, (label, name) in enumerate(names.items()):
        values = [100 * point["measures"].get(name, {}).get("median", 0.0) for point in points]
        middle = [row + (number - (len(names) - 1) / 2) * height for row in range(len(points))]
        axes.barh(middle, values, height=height, label=label)
    axes.set(xlabel="percent of the time")
    figure.legend(loc="outside lower center", ncols=len(names), fontsize="small")
    return figure


def _bars(points: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    size = (_WIDTH, 1.6 + 0.4 * len(points))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    labels = [_label(point) for point in points]
    axes.set(yticks=range(len(points)), yticklabels=labels, ymargin=0.01)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x", linewidth=0.5)
    return figure, axes


def _label(point: Mapping[str, Any]) -> str:
    words = [literal(f"{key}={value}") for key, value in point["settings"].items()]
    return " ".join(words if "ranks" in point["settings"] else [*words, f"{point['ranks']} ranks"])


def _of_curve(report: Report, curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points with the curve's settings, fewest ranks first, as the report has them."""
    common = curve["settings"].items()
    return [point for point in report["points"] if common <= point["settings"].items()]


def _error_bars(values: Sequence[Mapping[str, float]]) -> list[list[float]]:
    below = [value["median"] - value["low"] for value in values]
    return [below, [value["high"] - value["median"] for value in values]]


def _across(ranks: Sequence[int]) -> list[float]:
    low, high = min(ranks), max(ranks)
    return [low + (high - low) * step / _CURVE_POINTS for step in range(_CURVE_POINTS + 1)]


def _fit(fit: Mapping[str, Any]) -> ScalingFit:
    return ScalingFit(**{key: value for key, value in fit.items() if key != "most_ranks"})
