"""Loss against wall time as a PNG file. Needs matplotlib: the `plot` extra."""

import importlib
from collections.abc import Mapping, Sequence

from dist_ml.errors import ConfigError, MachineError


def loss_against_time(curves: Mapping[str, Sequence[tuple[float, float]]], file: str) -> None:
    """Loss, logarithmic, against seconds of training, a line for each candidate."""
    try:
        importlib.import_module("matplotlib").use("agg")
    except ImportError as error:
        raise MachineError("plot=FILE needs matplotlib; run: pip install 'dist_ml[plot]'") from error
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for label, points in curves.items():
        axes.semilogy(*zip(*points, strict=True), label=label)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("loss")
    axes.legend(fontsize="small")
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise ConfigError(f"plot={file} can't be written: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)
