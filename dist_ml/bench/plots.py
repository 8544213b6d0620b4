"""Plots of what benchmarks measured, as PNG files. Needs matplotlib: the `plot` extra."""

import importlib
from collections.abc import Sequence

from dist_ml.bench.form import Record
from dist_ml.errors import ConfigError, MachineError


def time_against_size(records: Sequence[Record], file: str) -> None:
    """Milliseconds against bytes, a line for each (ranks, mpi, setting, algorithm), both axes logarithmic."""
    try:
        importlib.import_module("matplotlib").use("agg")
    except ImportError as error:
        raise MachineError("plot=FILE needs matplotlib; run: pip install 'dist_ml[plot]'") from error
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(9, 6))
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        label = f"{record['algorithm']}, {record['mpi']} {record['setting']}, {record['ranks']} ranks"
        lines.setdefault(label, []).append((record["bytes"], record["ms"]))
    for label, points in lines.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_xlabel("bytes a rank")
    axes.set_ylabel("milliseconds")
    axes.legend(fontsize="x-small")
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise ConfigError(f"plot={file} can't be written: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)
