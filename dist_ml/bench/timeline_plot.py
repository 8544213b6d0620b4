"""Timelines as a picture, one above the other on one time axis. Needs matplotlib: the `plot`
extra.
"""

from collections.abc import Mapping
from typing import Any

from dist_ml.bench.plots import load_pyplot, save
from dist_ml.pipeline_parallel.dry_run import Timeline

_COLOURS = {"F": "#4c78a8", "B": "#f58518", "I": "#e45756", "W": "#72b7b2"}
_NAMES = {"F": "forward", "B": "backward", "I": "input part", "W": "weight part"}
_SHORTEST_LABELLED = 0.008  # of the step: in a shorter action its number has no room


def draw(timelines: Mapping[str, Timeline], file: str, unit: str) -> None:
    """`figure` in a file."""
    save(load_pyplot(), figure(timelines, unit), file)


def figure(timelines: Mapping[str, Timeline], unit: str) -> Any:
    """A panel for each timeline, a row a rank; lighter boxes are later stages of a rank. The caller
    closes it.
    """
    pyplot = load_pyplot()
    num_ranks = max(len(timeline.ranks) for timeline in timelines.values())
    height = 0.9 + len(timelines) * (0.5 + 0.32 * num_ranks)
    drawn, panels = pyplot.subplots(
        len(timelines), figsize=(9.0, height), sharex=True, layout="constrained", squeeze=False
    )
    for axes, (title, timeline) in zip(panels[:, 0], timelines.items(), strict=True):
        _panel(axes, title, timeline)
    panels[-1, 0].set_xlabel(unit)
    kinds = {
        timed.action.kind
        for timeline in timelines.values()
        for rank in timeline.ranks
        for timed in rank
    }
    drawn.legend(
        handles=[pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[kind]) for kind in sorted(kinds)],
        labels=[_NAMES[kind] for kind in sorted(kinds)],
        loc="outside lower center",
        ncols=4,
        fontsize="small",
    )
    return drawn


def _panel(axes: Any, title: str, timeline: Timeline) -> None:
    origin = min((rank[0].start for rank in timeline.ranks if rank), default=0.0)
    for row, rank in enumerate(timeline.ranks):
        stages = sorted({timed.action.stage for timed in rank})
        for (stage, kind, m), start, stop in rank:
            axes.barh(
                row,
                stop - start,
                left=start - origin,
                height=0.84,
                color=_COLOURS[kind],
                alpha=1.0 - 0.45 * stages.index(stage) / max(1, len(stages)),
                edgecolor="white",
                linewidth=0.4,
            )
            if stop - start > _SHORTEST_LABELLED * timeline.makespan:
                middle = (start + stop) / 2 - origin
                axes.text(middle, row, str(m), ha="center", va="center", fontsize=6)
    names = [f"rank {row}" for row in range(len(timeline.ranks))]
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.set_title(title, fontsize="medium")
    axes.invert_yaxis()
