"""What was noted of some steps, as one timeline over all ranks."""

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_ml.comm.communicator import Communicator
from dist_ml.flight.recorder import Record
from dist_ml.measure.timer import Span
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.trace import chrome, clock, files, hta
from dist_ml.trace.arrows import End, arrow_ends
from dist_ml.trace.calls import TracedCall, traced_calls
from dist_ml.trace.clock import Clock, Reading
from dist_ml.trace.files import Part, Paths, packed
from dist_ml.trace.slices import COMPUTE, INPUT, STEPS, Slice, in_lanes
from dist_ml.trace.torch_operators import TorchOperators
from dist_ml.train.planned_steps import measured, planned
from dist_ml.train.trainer import Trainer

FORMAT = 1
_SHOWN_AS = {"update": "optimizer", "data": "input"}  # phases


class TracedStep(NamedTuple):
    """One step of this rank, in nanoseconds of its own clock; `actions` in seconds of it."""

    number: int
    start: int
    stop: int
    actions: Sequence[TimedAction]


@dataclass
class Noted:
    """What one rank noted. `first`: its clock, before the steps."""

    first: Reading
    steps: list[TracedStep] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    num_missing: int = 0  # calls that the recorder had forgotten, or that were too many


def write(
    noted: Noted, trainer: Trainer, folder: Path, operators: TorchOperators | None = None
) -> Path:
    """Write the timeline of what was `noted`, at least one step; its file. Collective: compares the
    clocks, exchanges 48 bytes a call, and sends rank 0 each rank's part. `DataError` on all ranks
    where it can't be written.
    """
    world, own = trainer.mesh.world, trainer.mesh.world.recorder.rank
    times = Clock(noted.first, clock.read(world))
    slices = list(_slices(noted, trainer, times))
    if operators is not None:
        slices += operators.slices(times)
    shown = {member: rank for rank, member in enumerate(world.transport.members)}
    calls = traced_calls(noted.records, times, shown, own)
    told = _told(noted, trainer, times)
    ends = arrow_ends(world, calls, own, round(1000 * told["clock"]["error_us"]))
    told |= _counted(world, calls, ends, noted.num_missing)
    laid_out = in_lanes([call.slice for call in calls])
    start = _earliest(world, [*slices, *laid_out])
    events = chrome.events(world.rank, _label(trainer), slices, laid_out, ends, start)
    own_file = hta.rank_file(world.rank, world.size, [*slices, *laid_out], start)
    paths = Paths.of(folder, noted.steps[0].number, noted.steps[-1].number)
    files.write(world, paths, Part(packed(chrome.encoded(events)), packed(own_file)), told)
    return paths.whole


def _slices(noted: Noted, trainer: Trainer, times: Clock) -> Iterator[Slice]:
    """All but calls. Collective over the pipeline."""
    for step in noted.steps:
        start, stop = times.reference(step.start), times.reference(step.stop)
        yield Slice(STEPS, f"step {step.number}", start, stop)
    for span in noted.spans:
        track = INPUT if span.name == "data" else COMPUTE
        start, stop = times.reference(span.start), times.reference(span.stop)
        yield Slice(track, _SHOWN_AS.get(span.name, span.name), start, stop)
    if trainer.pipeline is not None:
        steps = [[_shared(timed, times) for timed in step.actions] for step in noted.steps]
        yield from measured(steps)
        yield from planned(trainer.pipeline, steps)


def _shared(timed: TimedAction, times: Clock) -> TimedAction:
    """By rank 0's clock."""
    start, stop = (times.reference(round(1e9 * each)) / 1e9 for each in (timed.start, timed.stop))
    return TimedAction(timed.action, start, stop)


def _earliest(world: Communicator, slices: Sequence[Slice]) -> int:
    """When the first of all ranks began. Collective."""
    start = np.array([min(each.start for each in slices)])
    world.allreduce(start, "min")
    return int(start[0])


def _told(noted: Noted, trainer: Trainer, times: Clock) -> dict[str, Any]:
    """What a reader should know beside the events. Collective."""
    world = trainer.mesh.world
    worst = np.array([times.error / 1000, abs(1e6 * times.drift)])
    world.allreduce(worst, "max")
    return {
        "made_by": "dist_ml",
        "format": FORMAT,
        "ranks": world.size,
        "mesh": trainer.mesh.sizes,
        "steps": [step.number for step in noted.steps],
        "clock": {
            "reference": "rank 0",
            "error_us": float(worst[0]),
            "largest_drift_ppm": float(worst[1]),
        },
    }


def _counted(
    world: Communicator, calls: Sequence[TracedCall], ends: Sequence[End], num_missing: int
) -> dict[str, int]:
    """Over all ranks. Collective."""
    joined = {end.call for end in ends}
    arrows = sum(end.begins for end in ends)
    counts = np.array([len(calls), arrows, len(calls) - len(joined), num_missing])
    world.allreduce(counts)
    names = ("calls", "arrows", "calls_without_arrow", "calls_left_out")
    return dict(zip(names, counts.tolist(), strict=True))


def _label(trainer: Trainer) -> str:
    place = ", ".join(f"{axis} {at}" for axis, at in trainer.mesh.coordinates.items())
    return f"rank {trainer.mesh.world.rank} ({place}) on {socket.gethostname()}"
