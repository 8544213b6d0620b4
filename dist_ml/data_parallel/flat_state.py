"""State that has an element for each element of the parameters: optimizer moments, residuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dist_ml.partition import Range


@dataclass(frozen=True)
class Rows:
    """Which of several replicas with values of their own this rank belongs to, and what another
    number of replicas makes of these.

    `sum`: new replica i begins with the sum of the old ones i, i + P, … of its P, so that what
    waits to be sent is neither lost nor sent twice. `mean`: all begin with the mean.
    """

    index: int
    count: int
    rule: Literal["sum", "mean"]


@dataclass(frozen=True)
class FlatState:
    """State of some consecutive elements of the flat vector of a rank's parameters, in place: to
    write into `values` is to go on from there.
    """

    kind: str  # its name, with {} for the parameter's: "optimizer/{}/exp_avg"
    where: Range
    values: torch.Tensor  # [where.size], a view of what is used
    rows: Rows | None = None  # None: all ranks that hold these elements have the same values


def state_of(
    kind: str, parameters: Sequence[torch.Tensor], rows: Rows | None = None
) -> list[FlatState]:
    """The values of parameters, in the order of the flat vector."""
    states, start = [], 0
    for parameter in parameters:
        where = Range(start, start + parameter.numel())
        states.append(FlatState(kind, where, parameter.detach().view(-1), rows))
        start = where.stop
    return states
