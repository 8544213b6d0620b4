"""A step whose loss or gradient norm jumps, computed again to tell why.

    the same ranks again                  come to something else:    transient; the second is used
    each the share of the next rank       come to something else:    persistent; the run ends
                                          come to the same:          real; the first is used

All that a step is computed from (weights, samples, masks) is the same each time. Results are
compared but for rounding, since sums over other shares are formed in another order; what makes a
loss jump is larger.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dist_ml.comm.communicator import Communicator
from dist_ml.config.fault import FaultConfig
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.data_parallel.reducer import GradientReducer, ReducerWrapper
from dist_ml.errors import ConfigError, MachineError
from dist_ml.models import BlockModel
from dist_ml.train.jump_detector import JumpDetector

log = logging.getLogger(__name__)

_SAME = 1e-3  # relative


class Outcome(NamedTuple):
    """What a step came to, over all ranks, and the loss of what this rank computed of it."""

    reduced: ReducedGradients
    loss: float
    norm: float
    own_loss: float

    def agrees(self, other: "Outcome") -> bool:
        return _same(self.loss, other.loss) and _same(self.norm, other.norm)

    def __str__(self) -> str:
        return f"loss {self.loss:.6g}, norm {self.norm:.6g}"


class RerunReducer(ReducerWrapper):
    """`inner`, whose sums are held against those of the steps before.

    `compute(shift)` runs the step's passes again, on the share of the rank so many after this one
    of `data`. An exchange may not remember what it has sent. Cost: the norm, a pass over the
    gradient, and one or three steps more for one that jumps. Whether it does is told from reduced
    values, the same on all ranks.
    """

    def __init__(
        self, inner: GradientReducer, data: Communicator, config: FaultConfig, microbatches: int
    ) -> None:
        super().__init__(inner)
        self._data, self._num_microbatches = data, microbatches
        self.compute: Callable[[int], None] = lambda _shift: None
        self._losses, self._norms = (
            JumpDetector(config.rerun_window, config.rerun_deviations) for _ in range(2)
        )
        self._own_loss = self._own_stop = 0.0

    def start(self) -> None:
        """Slots are final, and not yet summed."""
        parts = [self._inner.slots_of(m) for m in range(self._num_microbatches)]
        self._own_loss = sum({part.data_ptr(): float(part[0]) for part in parts}.values())
        self._own_stop = float(self.slots[-1])
        self._inner.start()

    def finish(self) -> ReducedGradients:
        outcome = self._outcome()
        if self._losses.jumps(outcome.loss) or self._norms.jumps(outcome.norm):
            outcome = self._judged(outcome)
        self._losses.add(outcome.loss)
        self._norms.add(outcome.norm)
        return outcome.reduced

    def _judged(self, first: Outcome) -> Outcome:
        log.warning("%s: a jump; the step is computed again", first)
        second = self._again(0)
        if not first.agrees(second):
            log.warning("again: %s: the fault was transient, and this is used", second)
            return second
        if self._data.size == 1:
            log.warning("again: the same; one replica can't tell a fault of its own from real")
            return second
        third = self._again(1)
        if not second.agrees(third):
            raise self._persistent(second, third)
        log.warning("by other ranks: the same: the jump is real")
        return self._again(0)  # to the last bit what it was

    def _again(self, shift: int) -> Outcome:
        stop = self._own_stop
        self._inner.begin()
        self.slots[-1] = stop
        self.compute(shift)
        return self._outcome()

    def _outcome(self) -> Outcome:
        reduced = self._inner.finish()
        return Outcome(reduced, reduced.slots[0], reduced.norm(), self._own_loss)

    def _persistent(self, second: Outcome, third: Outcome) -> MachineError:
        pairs = self._data.allgather_objects((second.own_loss, third.own_loss))
        ranks = suspects(pairs)
        named = f"replica {' or '.join(map(str, ranks))}" if ranks else "a replica"
        error = MachineError(
            f"a persistent fault: {named} computes wrongly: a step came to {second} twice, and to "
            f"{third} where each replica computed its neighbour's share; leave its machine out, "
            "and go on from a checkpoint before"
        )
        error.agreed = True
        log.error("%s", error)
        return error


def suspects(losses: Sequence[tuple[float, float]]) -> list[int]:
    """The ranks that differ from both of their neighbours, given of each the losses of its own
    share and of the next rank's; from one of them, where none differs from both.
    """
    size = len(losses)
    wrong = [not _same(losses[s][0], losses[s - 1][1]) for s in range(size)]
    both = [rank for rank in range(size) if wrong[rank] and wrong[(rank + 1) % size]]
    return both or [rank for rank in range(size) if wrong[rank] or wrong[(rank + 1) % size]]


def _same(a: float, b: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.isfinite(a) == math.isfinite(b)
    return math.isclose(a, b, rel_tol=_SAME)


def check_rerun(config: TrainConfig, sizes: Mapping[str, int], model: BlockModel) -> None:
    """`ConfigError` where a step can't be computed again as it was."""
    if not config.fault.rerun:
        return
    if sizes["pipeline"] * sizes["operator"] > 1:
        raise ConfigError(
            f"fault.rerun is not built for models on several ranks, mesh.pipeline="
            f"{sizes['pipeline']} mesh.operator={sizes['operator']}; use replicas alone, or leave "
            "it out"
        )
    if buffers := list(model.held_buffers()):
        raise ConfigError(
            f"fault.rerun would change {buffers[0]} (running statistics) twice in a step; use "
            "norms that keep nothing, or leave it out"
        )
