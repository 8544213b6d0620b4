"""Chimera: pipes in both directions through the same ranks, each filling the other's bubble.

Source: Li and Hoefler, "Chimera: Efficiently training large-scale neural networks with
bidirectional pipelines", SC 2021 (arXiv 2107.06925), sections 3.1 to 3.5.

Time is cut into slots, each as long as one forward or backward pass. Micro-batch k of a pipe has

    F of stage s in slot  a_k + s               a_k = 0, 2, 4, ...
    B of stage s in slot  b_k + D - 1 - s       b_k = D, D + 2, ...

Rank r holds stage r of the pipe down and stage D - 1 - r of the pipe up, so both pipes' passes lie
at (a or b) + r and at (a or b) + D - 1 - r. No two meet: D is even, hence r and D - 1 - r differ in
parity, all offsets a and b are even, and no a is a b.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.schedules.request import Request, multiples, require


class Placed(NamedTuple):
    """Micro-batches of one pipe that run together, and their slots on stage 0 and the last one."""

    microbatches: tuple[int, ...]
    forward_slot: int  # all of them in one slot: two where forwards are doubled
    backward_slots: tuple[int, ...]  # one for each


def chimera(request: Request) -> Schedule:
    """`pipes` = 2f ways through D ranks, f down and f up; each stage has 2f copies of its weights.

    Up to D micro-batches are one block, with D/f - 2 idle slots a rank (f = D/2: none). More are
    concatenated, blocks of D *directly*, or blocks of 2D with *forward doubling*: two micro-batches
    a forward slot, which makes slots equal where B = 2F, at twice the activations. `auto` takes
    what the dry run finds shorter. Backward halving is the same order on micro-batches of half the
    size.
    """
    _check(request)
    candidates = [_schedule(request, doubled=False)]
    if request.pipes == 2 and request.microbatches > request.ranks:
        candidates.append(_schedule(request, doubled=True))
    if request.concatenation != "auto":
        doubled = request.concatenation == "doubling"
        require(
            not doubled or len(candidates) == 2,
            "chimera",
            "two pipes and more micro-batches than ranks to double forwards",
            f"{request.pipes} pipes and {request.microbatches} micro-batches",
            "use concatenation=direct",
        )
        return candidates[doubled]
    costs = Costs.uniform(request.ranks, request.forward, request.backward)
    return min(candidates, key=lambda schedule: dry_run(schedule, costs).makespan)


def _check(request: Request) -> None:
    ranks, pipes, microbatches = request.ranks, request.pipes, request.microbatches
    require(
        ranks % 2 == 0,
        "chimera",
        "an even number of stages, since its pipes meet half-way",
        str(ranks),
        f"use {ranks - 1 if ranks > 1 else 2} or {ranks + 1}",
    )
    allowed = [2 * f for f in range(1, ranks // 2 + 1) if ranks // 2 % f == 0]
    require(
        pipes in allowed,
        "chimera",
        f"as many pipes as twice a divisor of half the {ranks} stages",
        str(pipes),
        f"use one of {', '.join(map(str, allowed))}",
    )
    require(
        microbatches % pipes == 0,
        "chimera",
        f"as many micro-batches in each of its {pipes} pipes",
        str(microbatches),
        multiples(microbatches, pipes),
    )
    if request.concatenation not in ("auto", "direct", "doubling"):
        raise ScheduleError(
            f"concatenation={request.concatenation} is not one of auto, direct, doubling"
        )


def _schedule(request: Request, doubled: bool) -> Schedule:
    ranks, num_pipes = request.ranks, request.pipes
    pipes = [_pipe(number, ranks, num_pipes) for number in range(num_pipes)]
    slots: list[list[tuple[int, Action]]] = [[] for _ in range(ranks)]
    for number, pipe in enumerate(pipes):
        own = range(number, request.microbatches, num_pipes)
        for placed in _placed(tuple(own), ranks, num_pipes, doubled):
            for stage, rank in enumerate(pipe):
                slots[rank] += _slots_of(placed, stage, ranks)
    orders = tuple(tuple(action for _, action in sorted(slots[rank])) for rank in range(ranks))
    pipe_of = tuple(m % num_pipes for m in range(request.microbatches))
    return Schedule("chimera", orders, tuple(pipes), pipe_of)


def _pipe(number: int, ranks: int, num_pipes: int) -> tuple[int, ...]:
    """Even numbers go down the ranks, odd ones up; each pair starts 2 D / `num_pipes` further
    on.
    """
    pair, up = divmod(number, 2)
    start = pair * (2 * ranks // num_pipes)
    return tuple((start + (ranks - 1 - s if up else s)) % ranks for s in range(ranks))


def _placed(own: tuple[int, ...], ranks: int, num_pipes: int, doubled: bool) -> Iterator[Placed]:
    """Slots of one pipe's micro-batches, block by block.

    A block's forward offsets are 0, 2, ...; its backward ones follow from D on, one a micro-batch.
    """
    width = 2 if doubled else 1
    groups = [own[i : i + width] for i in range(0, len(own), width)]
    per_block = ranks // num_pipes
    period = ranks + width * ranks  # slots in which a rank runs one block of groups
    for number, group in enumerate(groups):
        block, k = divmod(number, per_block)
        start = block * period
        backward = range(start + ranks + 2 * width * k, start + 4 * ranks * width, 2)
        yield Placed(group, start + 2 * k, tuple(backward[: len(group)]))


def _slots_of(placed: Placed, stage: int, ranks: int) -> Iterator[tuple[int, Action]]:
    for microbatch, backward_slot in zip(placed.microbatches, placed.backward_slots, strict=True):
        yield placed.forward_slot + stage, Action(stage, "F", microbatch)
        yield backward_slot + ranks - 1 - stage, Action(stage, "B", microbatch)
