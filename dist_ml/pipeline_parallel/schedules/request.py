"""What a schedule is asked for, and the refusals that several schedules share."""

from typing import NamedTuple

from dist_ml.errors import ScheduleError


class Request(NamedTuple):
    """The numbers that a schedule is made from; each schedule reads those that it has a use for."""

    ranks: int  # of the pipeline axis
    microbatches: int  # of a step, over all pipes
    chunks: int = 2  # interleaved: stages a rank
    pipes: int = 2  # chimera: ways through the ranks, in both directions together
    concatenation: str = "auto"  # chimera beyond one block: direct, doubling, or the shorter
    forward: float = 1.0  # time of a micro-batch's forward pass through a stage, in any unit
    backward: float = 2.0  # of its whole backward pass, in the same unit
    file: str | None = None  # file: a CSV in torch's form


def require(holds: bool, name: str, rule: str, values: str, remedy: str) -> None:
    """`ScheduleError` in one form: the rule, what was asked for, and what would do."""
    if not holds:
        raise ScheduleError(f"schedule {name} needs {rule}, not {values}; {remedy}")


def require_at_least(name: str, request: Request, microbatches: int) -> None:
    """So many micro-batches at least."""
    require(
        request.microbatches >= microbatches,
        name,
        f"at least {microbatches} micro-batches on {request.ranks} ranks",
        str(request.microbatches),
        f"use {microbatches} micro-batches, or fewer stages",
    )


def multiples(number: int, of: int) -> str:
    """Which multiples of `of` would do in the place of `number`."""
    below = number - number % of
    return f"use {below} or {below + of}" if below else f"use {of}"
