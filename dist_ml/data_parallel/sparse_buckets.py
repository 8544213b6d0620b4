"""The buckets of a sparse exchange: select, agree, sum, one after the other or while the backward
pass goes on.
"""

import math
from typing import Any

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SparseSum
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.bucket_scheduler import BucketScheduler
from dist_ml.data_parallel.buckets import cut
from dist_ml.data_parallel.density import DensityGroups
from dist_ml.data_parallel.drivers import InlineDriver, ThreadDriver
from dist_ml.data_parallel.flat_state import FlatState
from dist_ml.data_parallel.gradients import GradientBuffer
from dist_ml.data_parallel.node_part import NodePart, split_nodes
from dist_ml.data_parallel.small_tensors import SmallTensors
from dist_ml.data_parallel.sparse_part import SparsePart
from dist_ml.data_parallel.xi import XiEstimate
from dist_ml.errors import NonFiniteError
from dist_ml.partition import Range


class SparseBuckets:
    """Replaces the selected part of the flat gradient by its sum over `comm`, bucket by bucket.

        for each bucket:  all small enough?  (check_first: one word, before anything is added)
                          small tensors aside | select | all finite? (one word) | sparse sum

    From the first bucket on that is bad on any rank nothing more is exchanged, on all ranks; `undo`
    takes back what was. Collective, in the order of buckets. With `config.overlap` so many buckets
    are exchanged on a thread, over a communicator of its own.
    """

    def __init__(
        self,
        gradients: GradientBuffer,
        groups: DensityGroups,
        small: SmallTensors,
        comm: Communicator,
        config: SparseConfig,
        seed: int,
        check_first: bool,
    ) -> None:
        self._gradients, self._small = gradients, small
        self._flat: Array = gradients.flat.numpy()
        # of a rank's gradient, so that no sum over the ranks overflows in its norm, not even when
        # momentum has added all of it up
        self._largest_square: float | None = None
        if check_first:
            gain = comm.size / (1 - config.momentum)
            self._largest_square = float(np.finfo(self._flat.dtype).max) / gain**2
        words = -(-gradients.num_words // max(1, config.overlap))
        self.ranges = cut(gradients.ranges, gradients.num_words, words)
        over = comm.split(0) if config.overlap else comm
        assert over is not None
        self._over = over
        self._nodes = split_nodes(comm) if config.hierarchical else None
        self._own_comms = [*([over] if config.overlap else ()), *(self._nodes or ())]
        self.parts = [
            self._part(bucket, groups.within(bucket), config, seed + 1000 * number)
            for number, bucket in enumerate(self.ranges)
        ]
        self._xi = XiEstimate(comm, config.diagnose_every)
        self._step, self._density, self._scale = 0, config.density, 1.0
        self._sums: list[SparseSum] = []
        self._failed = False
        driver = (ThreadDriver if config.overlap else InlineDriver)(self._reduce)
        self._scheduler = BucketScheduler(gradients.ranges, self.ranges, driver)
        if config.overlap:
            gradients.on_final(self._scheduler.ready)

    def start(self, step: int, density: float) -> None:
        """From here on gradients become final; with overlap, exchanges begin."""
        self._step, self._density = step, density
        self._sums, self._failed = [], False
        self._scheduler.begin()

    def finish(self, scale: float) -> bool:
        """All are summed, of gradients scaled by `scale` (1 with overlap); false if some gradient
        was bad, and nothing may be used.
        """
        self._scale = scale
        self._scheduler.finish()
        return not self._failed

    def undo(self) -> None:
        """What was exchanged in this step is back in the residuals."""
        for part, total in zip(self.parts, self._sums, strict=False):
            part.undo_exchange(total)

    def nonzero(self) -> list[Array] | None:
        """The values of the sums that are not zero; None where this rank knows a shard's only."""
        if self._nodes:
            return None
        found = [
            total.entries.values if total.entries is not None else total.dense
            for total in self._sums
        ]
        return [values for values in found if values is not None]

    def close(self) -> None:
        self._scheduler.close()
        for comm in self._own_comms:
            comm.free()

    def diagnostics(self) -> dict[str, float]:
        """Of the last step: densities sent and received, the residual's norm, xi, seconds by
        phase.
        """
        size = max(1, sum(part.num_elements for part in self.parts))
        values = {
            name: sum(part.last.get(name, 0.0) * part.num_elements for part in self.parts) / size
            for name in ("density_sent", "density_result")
        }
        values["density"] = self._density
        values["residual_norm"] = math.sqrt(sum(part.residual_norm() ** 2 for part in self.parts))
        for part in self.parts:
            for phase, seconds in part.phases.take().items():
                values[f"seconds_{phase}"] = values.get(f"seconds_{phase}", 0.0) + seconds
        return {**values, **self._xi.last}

    def tensors(self) -> list[FlatState]:
        pairs = zip(self.parts, self.ranges, strict=True)
        return [state for part, bucket in pairs for state in part.tensors(bucket.start)]

    def state_dicts(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        for part, saved in zip(self.parts, states, strict=True):
            part.load_state_dict(saved)

    def _part(
        self, bucket: Range, inside: DensityGroups, config: SparseConfig, seed: int
    ) -> SparsePart:
        vector = self._flat[bucket.slice]
        if self._nodes:
            node, across = self._nodes
            return NodePart(vector, inside, node, across, config, seed)
        return SparsePart(vector, inside.sparse, self._over, config, seed)

    def _reduce(self, number: int) -> None:
        """Runs on the thread when there is one."""
        part, bucket = self.parts[number], self.ranges[number]
        limit = self._largest_square
        if limit is not None and self._any(not self._square(bucket) <= limit):
            return
        self._small.set_aside(bucket)
        selected = True
        try:
            part.select(self._density, self._scale)
        except NonFiniteError:
            selected = False
        if self._any(not selected):
            if selected:
                part.undo()
            return
        self._xi.before(self._step, part)
        total = part.exchange(self._density)
        self._xi.after(total, part)
        part.finish_apply()
        self._sums.append(total)

    def _any(self, failed: bool) -> bool:
        """Has this bucket, or one before it, failed on any rank? One word."""
        flag = np.array([failed or self._failed], np.int32)
        self._over.allreduce(flag, "max")
        self._failed = bool(flag[0])
        return self._failed

    def _square(self, bucket: Range) -> float:
        """The squared norm of this rank's gradient and slots; NaN or infinite if one of them is."""
        gradient, slots = self._flat[bucket.slice], self._gradients.slots.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.dot(gradient, gradient)) + float(np.dot(slots, slots))
