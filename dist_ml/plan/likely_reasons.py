"""Why a run took, sent or held something else than was predicted: what is known of it, the
weightiest first. A guess by circumstances, each of which is seen in the run itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dist_ml.config.train import TrainConfig
from dist_ml.plan.machine import Processor

FAR = 0.2  # of what was predicted: beyond, a reason is given
_FEW_STEPS = 50  # of which the first allocate and find caches cold


@dataclass(frozen=True)
class Run:
    """A finished run, and what it was predicted with."""

    config: TrainConfig
    summary: Mapping[str, Any]
    processor: Processor
    ranks_per_node: int

    @property
    def cores(self) -> int:
        return int(self.summary["environment"]["cores"])

    @property
    def working(self) -> int:
        """Threads of this node's ranks."""
        return int(min(self.ranks_per_node, self.summary["ranks"])) * self.processor.threads


def likely_reason(row: Mapping[str, Any], run: Run) -> str:
    """Of the first circumstance that can explain it."""
    ways = {"s": _of_seconds, "words": _of_words, "bytes": _of_bytes}
    return next(ways[row["unit"]](row, run), "not known")


def _of_seconds(row: Mapping[str, Any], run: Run) -> Iterator[str]:
    longer = row["measured"] > row["predicted"]
    load, steps = run.summary["environment"]["load"], run.summary["num_steps"]
    if longer and load > max(run.working, run.cores) + 1:
        yield f"other programs computed, too: a load of {load:.1f} on {run.cores} cores"
    if longer and steps < _FEW_STEPS:
        yield f"few steps ({steps}): the first ones allocate memory and find caches cold"
    if longer and row["name"] == "exchange":
        yield "it holds the wait for the slowest rank"
    if run.working > run.cores:
        yield f"{run.working} threads take turns on {run.cores} cores"
    here = min(run.ranks_per_node, run.summary["ranks"])
    if run.processor.ranks != here:
        yield (
            f"calibrated with {run.processor.ranks} at once, and {here} computed: "
            f"dist-ml launch -n {here} calibrate"
        )
    if not longer:
        yield "the machine may have been busy when it was calibrated"


def _of_words(_: Mapping[str, Any], run: Run) -> Iterator[str]:
    if run.summary.get("recoveries"):
        yield "a rank was lost, and the others went on with its share"
    if run.config.resume is not None:
        yield "steps before the run was resumed may have had another mesh"


def _of_bytes(row: Mapping[str, Any], _: Run) -> Iterator[str]:
    if row["measured"] > row["predicted"]:
        yield "the data set, evaluation and checkpoints are not in the plan"
    else:
        yield "the largest operator's working memory was not needed at the peak"
