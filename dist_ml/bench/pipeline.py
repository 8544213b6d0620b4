"""`dist-ml bench pipeline`: what each schedule's step takes, holds and sends, planned and measured.

Stages sleep known times, so that eight ranks run side by side on two cores; all schedules do the
same work, in turn. Planned: the dry run with the same times. The first stage has no input to give a
gradient to, planned or measured. Where steps run into each other, the pipe is full in the one that
is told. Rows are in the form of Li and Hoefler, SC 2021, table 2.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.pipeline_part import measure, names_for
from dist_ml.bench.pipeline_plan import plan
from dist_ml.bench.timeline_plot import draw
from dist_ml.bench.worlds import Worlds
from dist_ml.measure.compare import ratio
from dist_ml.pipeline_parallel.dry_run import TimedAction, Timeline
from dist_ml.pipeline_parallel.schedule import Action

GPIPE, ONE_F_ONE_B = "gpipe", "one_f_one_b"
_LIMIT = 1.03  # of the planned time


@dataclass(frozen=True)
class PipelineBench:
    """What to run."""

    mpi: str
    ranks: tuple[int, ...]  # of the pipeline; each is a table
    blocks: tuple[int, ...]  # micro-batches of a step, in multiples of the ranks
    schedules: tuple[str, ...]  # chimera@2: with four pipes
    milliseconds: tuple[float, ...]  # of a stage: forward, input part, weight part
    rounds: int  # of alternation
    # file to draw the last step of each schedule to, measured above planned (extra: plot); of the
    # last table
    plot: str | None

    @property
    def seconds(self) -> list[float]:
        """Of a stage, likewise."""
        return [1e-3 * value for value in self.milliseconds]


def run(config: PipelineBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    pictures: dict[str, Timeline] = {}
    for ranks in config.ranks:
        for block in config.blocks:
            found = _measured(config, worlds, ranks, block * ranks)
            names = found["seconds"]
            rows = [record(name, ranks, block * ranks, config.seconds, found) for name in names]
            records += rows
            checks += checks_of(rows, f"D={ranks} N={block * ranks}")
            if config.plot is not None:
                pictures = drawn(rows, config.seconds, found)
    if config.plot is not None:
        draw(pictures, config.plot, "milliseconds")
    return Result("pipeline", records, checks)


def _measured(config: PipelineBench, worlds: Worlds, ranks: int, microbatches: int) -> Any:
    return worlds.measure(
        "pipeline",
        {
            "schedules": names_for(config.schedules, ranks, microbatches),
            "microbatches": microbatches,
            "seconds": config.seconds,
            "rounds": config.rounds,
        },
        ranks=ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )


def record(
    name: str, ranks: int, microbatches: int, seconds: Sequence[float], found: Mapping[str, Any]
) -> dict[str, Any]:
    """One row: planned from the schedule alone, measured from what the ranks found."""
    planned = plan(name, ranks, microbatches, seconds)
    taken = found["seconds"][name]
    step = statistics.median(taken)

    def over(other: str) -> float:
        return ratio(found["seconds"][other], taken).median if other in found["seconds"] else 1.0

    return {
        "schedule": name,
        "ranks": ranks,
        "microbatches": microbatches,
        "planned_ms": 1e3 * planned.seconds,
        "measured_ms": 1e3 * step,
        "planned_bubble": planned.bubble,
        "measured_bubble": 1 - planned.busy / step,
        "planned_activations": max(planned.activations),
        "measured_activations": max(found["activations"][name]),
        "same_activations": list(planned.activations) == list(found["activations"][name]),
        "weight_copies": planned.weight_copies,
        "planned_messages": planned.messages,
        "sent_messages": found["messages"][name],
        "samples_per_second": microbatches / step,
        "over_gpipe": over(GPIPE),
        "over_one_f_one_b": over(ONE_F_ONE_B),
    }


def drawn(
    rows: Sequence[Record], seconds: Sequence[float], found: Mapping[str, Any]
) -> dict[str, Timeline]:
    """Of each schedule the last step, measured and planned, in milliseconds, by title."""
    pictures = {}
    for row in rows:
        name = row["schedule"]
        measured = [
            [TimedAction(Action.parse(text), start, stop) for text, start, stop in rank]
            for rank in found["timed_actions"][name]
        ]
        planned = plan(name, row["ranks"], row["microbatches"], seconds).timeline.ranks
        for what, timeline in (("measured", measured), ("planned", planned)):
            in_ms = Timeline(
                tuple(
                    tuple(TimedAction(each, 1e3 * start, 1e3 * stop) for each, start, stop in rank)
                    for rank in timeline
                )
            )
            pictures[f"{name}, {what}: {in_ms.makespan:,.0f} ms"] = in_ms
    return pictures


def checks_of(records: Sequence[Record], where: str) -> list[Check]:
    """Of one table: times, activations and messages as planned."""
    slower = most(row["measured_ms"] / row["planned_ms"] for row in records)
    held = most(float(not row["same_activations"]) for row in records)
    sent = most(abs(row["sent_messages"] - row["planned_messages"]) for row in records)
    return [
        Check(f"step over its plan, {where}", slower, _LIMIT, "lower"),
        Check(f"ranks' peak activations unlike the plan, {where}", held, 0, "lower"),
        Check(f"messages unlike the plan, {where}", sent, 0, "lower"),
    ]


BENCH = Bench(
    "pipeline schedules, planned and measured with stages that sleep",
    PipelineBench,
    run,
    {"pipeline": measure},
    ranks=4,
)
