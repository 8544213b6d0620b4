"""Schedules in torch's CSV form: a row a rank, a cell an action, empty cells ignored.

Written cells are plain actions like `2F0`. Read cells may also hold what torch's lowering adds
(`1SEND_F0`, `1RECV_B0`, `0UNSHARD`, `0RESHARD`, `0REDUCE_GRAD`): communication follows from the
actions, so these are dropped; `(0F1;3B0)OVERLAP_F_B` is its actions one after the other. The file
has no header: which rank holds which stage is read off.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.schedules.request import Request

_ADDED = re.compile(r"\d+(SEND|RECV)_[FB]\d+|\d+(UNSHARD|RESHARD|REDUCE_GRAD)")
_OVERLAPPED = re.compile(r"\(?([^()]*)\)?OVERLAP_F_B")


def from_file(request: Request) -> Schedule:
    """The schedule in `request.file`; `ScheduleError` where it doesn't fit the ranks."""
    if request.file is None:
        raise ScheduleError("schedule file needs a CSV: set pipeline.file to its path")
    schedule = read_csv(Path(request.file))
    if schedule.num_ranks != request.ranks:
        raise ScheduleError(
            f"{request.file} is for {schedule.num_ranks} ranks, but mesh.pipeline={request.ranks}; "
            f"use mesh.pipeline={schedule.num_ranks}"
        )
    if schedule.num_microbatches != request.microbatches:
        raise ScheduleError(
            f"{request.file} is for {schedule.num_microbatches} micro-batches, not "
            f"{request.microbatches}; use {schedule.num_microbatches}"
        )
    return schedule


def read_csv(file: Path) -> Schedule:
    """The schedule that `file` holds; `ScheduleError` where it can't be read."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ScheduleError(f"{file} can't be read: {reason}") from error
    return parse_csv(text, file.name)


def parse_csv(text: str, name: str) -> Schedule:
    """The schedule that `text` holds; `ScheduleError` names the row and cell that can't be read."""
    orders: list[tuple[Action, ...]] = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        try:
            orders.append(tuple(_actions(row)))
        except ScheduleError as error:
            raise ScheduleError(f"{name}, row {number} (rank {number - 1}): {error}") from error
    while orders and not orders[-1]:
        orders.pop()
    if not orders:
        raise ScheduleError(f"{name} holds no action")
    return _with_header(name, tuple(orders))


def write_csv(schedule: Schedule) -> str:
    """The schedule's actions as torch reads them (`format="compute_only"`)."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [str(action) for action in order] for order in schedule.actions
    )
    return out.getvalue()


def _actions(cells: Iterable[str]) -> Iterator[Action]:
    for cell in cells:
        text = cell.strip()
        if not text or _ADDED.fullmatch(text):
            continue
        overlapped = _OVERLAPPED.fullmatch(text)
        parts = overlapped[1].split(";") if overlapped else [text]
        yield from map(Action.parse, parts)


def _with_header(name: str, orders: tuple[tuple[Action, ...], ...]) -> Schedule:
    """Pipes and stages as the forward passes show them."""
    places: dict[int, dict[int, int]] = {}
    for rank, order in enumerate(orders):
        for stage, kind, microbatch in order:
            if kind == "F":
                places.setdefault(microbatch, {}).setdefault(stage, rank)
    num_stages = 1 + max((action.stage for order in orders for action in order), default=0)
    num_microbatches = 1 + max(action.microbatch for order in orders for action in order)
    pipes: list[tuple[int, ...]] = []
    pipe_of = []
    for m in range(num_microbatches):
        missing = [s for s in range(num_stages) if s not in places.get(m, {})]
        if missing:
            raise ScheduleError(_missing(name, places, missing[0], m))
        pipe = tuple(places[m][s] for s in range(num_stages))
        if pipe not in pipes:
            pipes.append(pipe)
        pipe_of.append(pipes.index(pipe))
    return Schedule(name, orders, tuple(pipes), tuple(pipe_of))


def _missing(name: str, places: dict[int, dict[int, int]], stage: int, m: int) -> str:
    """Where the forward pass would stand is known by the stage's others."""
    ranks = sorted({ranks[stage] for ranks in places.values() if stage in ranks})
    where = f" on rank {' or '.join(map(str, ranks))}" if ranks else ""
    return f"{name}: {stage}F{m} is missing{where}; each stage runs it once"
