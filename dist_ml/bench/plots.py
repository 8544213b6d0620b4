"""Plots of what benchmarks measured, as PNG files. Needs matplotlib: the `plot` extra."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from dist_ml.bench.form import Record
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch.extras import install_command

_POINTS = 50


def time_against_size(records: Sequence[Record], file: str) -> None:
    """Milliseconds against bytes, a line for each (ranks, mpi, setting, algorithm), both axes
    logarithmic.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 6))
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        label = (
            f"{record['algorithm']}, {record['mpi']} {record['setting']}, {record['ranks']} ranks"
        )
        lines.setdefault(label, []).append((record["bytes"], record["ms"]))
    for label, points in lines.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_xlabel("bytes a rank")
    axes.set_ylabel("milliseconds")
    axes.legend(fontsize="x-small")
    save(pyplot, figure, file)


def draw_roofline(
    records: Sequence[Record], peaks: Mapping[int, float], bandwidth: float, file: str
) -> None:
    """GFLOP/s against FLOP/byte, both logarithmic: a roof for each word size (`peaks`, GFLOP/s),
    and each kernel's points.

    `bandwidth` in GB/s.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        points.setdefault(record["kernel"], []).append((record["FLOP/byte"], record["GFLOP/s"]))
    intensities = [intensity for measured in points.values() for intensity, _ in measured]
    ridges = [peak / bandwidth for peak in peaks.values()]
    left, right = 0.5 * min(*intensities, *ridges), 2 * max(intensities)
    across = [left * (right / left) ** (step / _POINTS) for step in range(_POINTS + 1)]
    for num_bytes, peak in sorted(peaks.items(), reverse=True):
        roof = [min(peak, bandwidth * intensity) for intensity in across]
        axes.loglog(
            across,
            roof,
            linewidth=1.2,
            label=f"roof, {num_bytes} bytes a word: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s",
        )
    for kernel, measured in points.items():
        axes.loglog(
            *zip(*measured, strict=True),
            linestyle="none",
            marker="o",
            markersize=5,
            alpha=0.8,
            label=kernel,
        )
    axes.set_xlabel("operations / byte")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize="x-small")
    save(pyplot, figure, file)


def loss_against_seconds(records: Sequence[Record], title: str, file: str) -> None:
    """Loss (logarithmic) against seconds, a line for each candidate; the first is what the others
    are compared with.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        lines.setdefault(record["candidate"], []).append((record["seconds"], record["loss"]))
    for number, (label, points) in enumerate(lines.items()):
        marks = (
            {"color": "black", "linewidth": 2.5}
            if number == 0
            else {"linewidth": 1.2, "linestyle": ("-", "--")[number % 2]}
        )
        axes.semilogy(*zip(*points, strict=True), label=label, **marks)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("loss, mean of the last steps")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(True, which="both", alpha=0.3)
    save(pyplot, figure, file)


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing into files; `MachineError` where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("agg")
    except ImportError as error:
        raise MachineError(f"plot=FILE needs matplotlib; run: {install_command('plot')}") from error
    return importlib.import_module("matplotlib.pyplot")


def save(pyplot: Any, figure: Any, file: str) -> None:
    """Write the figure in the form that the file's name ends in, and forget it; `ConfigError` where
    it can't be written.
    """
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"plot={file} can't be written ({error}); choose a folder that is there"
        ) from error
    finally:
        pyplot.close(figure)
