"""The gradient reducer that sends about 1 % of the gradient: error feedback around a sparse
allreduce.
"""

import logging
import math
from collections.abc import Collection, Sequence
from math import prod
from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.density import DensityWarmup, density_groups
from dist_ml.data_parallel.flat_state import FlatState
from dist_ml.data_parallel.gradients import GradientBuffer
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.small_tensors import SmallTensors
from dist_ml.data_parallel.sparse_buckets import SparseBuckets
from dist_ml.data_parallel.sparse_gradients import SparseGradients
from dist_ml.placement import whole_shape

log = logging.getLogger(__name__)


class SparseReducer(GradientReducer):
    """Sums the selected part of the ranks' gradients into the flat buffer; what was not selected
    waits in the residual.

        1. each bucket, when its gradients are final:  select | agree that all are finite | sum
        2. after the last one:  small tensors and the slots in one dense allreduce

    When a gradient is not finite on any rank, nothing is exchanged and slot 0, the loss, becomes
    NaN on all ranks: the step can't be used. A bad gradient never enters its rank's residual; the
    good ones of other ranks stay in theirs, to be sent later. With `check_first`, ranks agree
    before anything is added to a residual that every gradient is so small that the norm of the sum
    can't overflow, at the price of reading the gradient once more: then a bad step leaves no trace
    (where bad steps are skipped and training goes on), but in buckets that overlap has exchanged
    before the bad one was seen, whose gradients wait in the residuals.

    `names` are the parameters'; those in `always_dense` (which ranks that don't exchange with each
    other hold alike, and would select differently) are never selected from.
    """

    def __init__(
        self,
        gradients: GradientBuffer,
        names: Sequence[str],
        comm: Communicator,
        config: SparseConfig,
        seed: int = 0,
        check_first: bool = False,
        always_dense: Collection[str] = (),
    ) -> None:
        self._gradients, self._comm, self._config = gradients, comm, config
        self.slots = gradients.slots
        self._warmup = DensityWarmup(config)
        self._steps = 0
        wholes = [prod(whole_shape(parameter)) for parameter in gradients.parameters]
        dense = {name for name, n in zip(names, wholes, strict=True) if n < config.dense_below}
        groups = density_groups(
            names, gradients.ranges, config.densities, dense.union(always_dense)
        )
        flat, slots = gradients.flat.numpy(), gradients.slots.numpy()
        self._small = SmallTensors(flat, groups.dense, slots, comm, config.momentum)
        self._buckets = SparseBuckets(
            gradients, groups, self._small, comm, config, seed, check_first
        )
        log.info(
            "sparse gradients by %s: %d elements sparse, %d dense",
            config.allreduce,
            gradients.num_words - self._small.sums.size,
            self._small.sums.size,
        )

    def begin(self) -> None:
        self._gradients.begin()

    def start(self) -> None:
        self._buckets.start(self._steps, self._warmup.at(self._steps))

    def finish(self) -> SparseGradients:
        self._gradients.complete()
        usable = self._buckets.finish(self._clip_scale())
        self._small.reduce(usable)
        if not usable:
            self._buckets.undo()
            self.slots[0] = math.nan
            return SparseGradients(self._gradients, None, undo=None)
        self._steps += 1
        nonzero = self._buckets.nonzero()
        if nonzero is not None:
            nonzero.append(self._small.sums)
        return SparseGradients(self._gradients, nonzero, undo=self._roll_back)

    def close(self) -> None:
        self._buckets.close()

    def diagnostics(self) -> dict[str, float]:
        """Of the last step, on this rank: densities sent and received, residual over gradient norm,
        xi, seconds by phase.
        """
        values = self._buckets.diagnostics()
        norm = float(torch.linalg.vector_norm(self._gradients.flat))
        values["residual_over_gradient"] = values.pop("residual_norm") / max(norm, 1e-30)
        return values

    def tensors(self) -> list[FlatState]:
        """Residuals and their velocities, of each rank (node) its own, and the small tensors'
        momentum.
        """
        return [*self._small.tensors(), *self._buckets.tensors()]

    def state_dict(self) -> dict[str, Any]:
        """The step that the warm-up has reached, and this rank's thresholds."""
        return {"steps": self._steps, "parts": self._buckets.state_dicts()}

    def load_state_dict(self, state: dict[str, Any], own: bool = True) -> None:
        self._steps = state["steps"]
        if own:
            self._buckets.load_state_dicts(state["parts"])

    def _roll_back(self) -> None:
        """As before the step, whose sums will not be used: what was selected is back in the
        residuals, and the momentum, where it was moved or forgotten, is as it was.
        """
        self._buckets.undo()
        self._small.roll_back()
        self._steps -= 1

    def _clip_scale(self) -> float:
        """Local clipping (DGC, section 3.3): each rank clips its own gradient at clip_norm /
        sqrt(P), before accumulating it.
        """
        if self._config.clip_norm is None:
            return 1.0
        norm = float(torch.linalg.vector_norm(self._gradients.flat))
        limit = self._config.clip_norm / math.sqrt(self._comm.size)
        return limit / norm if math.isfinite(norm) and norm > limit else 1.0
