"""Gradients of a model that is spread over the pipeline axis: summed over those that hold the same
stages, and what the axis must agree on.
"""

import math
from typing import Any

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.train.pipeline import Pipeline


class PipelineReducer(GradientReducer):
    """Sums this rank's gradients over the ranks that hold the same stages, by `inner`, and has the
    ranks of the pipeline agree on the rest.

    Parameters that stages of several ranks use are summed over these first. Words beside `inner`'s:
    the slots and, where somebody asks, the norm, once along the pipeline axis.

    Gradients are exchanged as they become final where the ranks that exchange them run the same
    actions. Copies in pipes of different directions don't: one would wait in an exchange for the
    other, which waits for an action of the first.
    """

    def __init__(self, inner: GradientReducer, pipeline: Pipeline) -> None:
        self._inner = inner
        self._comm = pipeline.comm
        self._share = 1 / pipeline.num_copies
        self._shared = SharedParameters(pipeline)
        self._eager = pipeline.num_copies == 1 and not pipeline.shared
        self._started = False
        self.slots = inner.slots

    def begin(self) -> None:
        self._inner.begin()

    def start(self) -> None:
        """Gradients become final: where that may be told at once, exchanges begin."""
        if self._eager:
            self._started = True
            self._inner.start()

    def finish(self) -> "PipelineGradients":
        self._shared.sum()
        if not self._started:
            self._inner.start()
        self._started = False
        return PipelineGradients(self._inner.finish(), self._comm, self._share, self._shared)

    def diagnostics(self) -> dict[str, float]:
        return self._inner.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)

    def close(self) -> None:
        self._inner.close()


class PipelineGradients(ReducedGradients):
    """The gradient of the whole model, of which this rank holds its stages'.

    `share`: of what this rank holds, what it counts for in sums along the axis, where others hold
    the same. Slots and norm are one allreduce of a few words each.
    """

    def __init__(
        self, inner: ReducedGradients, comm: Communicator, share: float, shared: "SharedParameters"
    ) -> None:
        self._inner, self._comm, self._share, self._shared = inner, comm, share, shared
        self.is_agreed = inner.is_agreed
        slots = np.array(inner.slots, np.float64) * share
        comm.allreduce(slots)
        self.slots = [float(value) for value in slots]

    def norm(self) -> float:
        norm = self._inner.norm()
        square = np.array([self._share * (norm * norm - self._shared.counted_twice())], np.float64)
        self._comm.allreduce(square)
        return math.sqrt(float(square[0])) if square[0] >= 0 else math.nan

    def scale(self, factor: float) -> None:
        self._inner.scale(factor)

    def roll_back(self) -> None:
        self._inner.roll_back()


class SharedParameters:
    """Parameters that several ranks of a pipeline use: each holds a copy, updated alike, because
    each has the sum of all uses' gradients.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        schedule, comm = pipeline.schedule, pipeline.comm
        copies = schedule.holders(schedule.stages_of(comm.rank)[0])
        self._tied: list[tuple[torch.nn.Parameter, Communicator, int, float]] = []
        for places in pipeline.shared:
            users = sorted({rank for place in places for rank in schedule.holders(place.stage)})
            own = [place for place in places if comm.rank in schedule.holders(place.stage)]
            group = comm.split(0 if own else None, comm.rank)
            if own:
                assert group is not None
                same = len(set(copies) & set(users))
                self._tied.append((own[0].parameter, group, same, 1 - same / len(users)))

    def sum(self) -> None:
        """Over the uses; divided by the copies that the reducer will add up. Collective."""
        for parameter, group, same, _ in self._tied:
            sink = getattr(parameter, "gradient_sink", None)
            if sink is not None:
                sink.zero_if_empty()
            assert parameter.grad is not None
            group.allreduce(parameter.grad)
            if same > 1:
                parameter.grad.div_(same)

    def counted_twice(self) -> float:
        """Of this rank's squared norm, the part that other ranks count, too."""
        return sum(
            more * float(torch.linalg.vector_norm(parameter.grad)) ** 2
            for parameter, _, _, more in self._tied
            if parameter.grad is not None
        )
