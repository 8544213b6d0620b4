"""Words and milliseconds of 1-D and 2-D layers against the batch. Needs matplotlib: the `plot`
extra.
"""

from collections.abc import Sequence

from dist_ml.bench.form import Record
from dist_ml.bench.plots import load_pyplot, save
from dist_ml.operator_parallel.grid import Sides
from dist_ml.operator_parallel.layout import sides_for
from dist_ml.operator_parallel.words import Layer, model_words

_COLOURS = {"1d": "#4c78a8", "2d": "#f58518"}
_DASHES = ("-", "--", ":", "-.")
_POINTS = 24


def draw(
    records: Sequence[Record], planned_ranks: Sequence[int], width: int, where: str, file: str
) -> None:
    """Left: planned words of a pair of layers (lines, a dash a number of ranks); right: measured
    words of a step, and its milliseconds.
    """
    pyplot = load_pyplot()
    figure, (plans, words, times) = pyplot.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    batches = sorted(record["batch"] for record in records)
    low, high = max(planned_ranks), 4 * width
    across = [low * round((high / low) ** (i / _POINTS)) for i in range(_POINTS + 1)]
    for layout, colour in _COLOURS.items():
        for ranks, dashes in zip(planned_ranks, _DASHES, strict=False):
            sides = sides_for(layout, ranks, ())
            found = [_words(layout, sides, width, batch) for batch in across]
            plans.loglog(across, found, dashes, color=colour, label=f"{layout}, P = {ranks}")
        for axes, key in ((words, "words"), (times, "ms")):
            found = [record[f"{layout} {key}"] for record in records]
            axes.loglog(batches, found, "o-", color=colour, label=layout)
        lines = [record[f"{layout} planned words"] for record in records]
        words.loglog(batches, lines, "k:", linewidth=2, label=f"{layout}, planned")
    plans.set_title(f"planned, a pair of layers of {width}", fontsize="medium")
    words.set_title(f"words of a step, layers of {width}", fontsize="medium")
    times.set_title(f"its milliseconds, {where}", fontsize="medium")
    plans.set_ylabel("words a rank sends")
    for axes in (words, times):
        axes.set_xticks(batches, [str(batch) for batch in batches], fontsize="small")
    for axes in (plans, words, times):
        axes.set_xlabel("samples of a batch")
        axes.minorticks_off()
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize="x-small")
    save(pyplot, figure, file)


def _words(layout: str, sides: Sides, width: int, batch: int) -> int:
    layers = [Layer(f"layers.{i}", width, width) for i in range(2)]
    words = model_words(layout, sides, layers, batch, first_gradient=True, bias=False)
    return sum(map(sum, words))
