"""The gradient reducer that sends about 1 % of the gradient: error feedback around a sparse
allreduce, bucket by bucket.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import Settings, SparseSum, fastest
from dist_ml.comm.sparse.probe import probe
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.bucket_scheduler import BucketScheduler
from dist_ml.data_parallel.density import DensitySchedule, layout
from dist_ml.data_parallel.drivers import InlineDriver, ThreadDriver
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.node_part import NodePart, split_nodes
from dist_ml.data_parallel.reduced_gradients import Full
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.residual import reshard
from dist_ml.data_parallel.selection import count_of
from dist_ml.data_parallel.sparse_part import SparsePart
from dist_ml.data_parallel.xi import Xi
from dist_ml.errors import NonFiniteError
from dist_ml.partition import Range

log = logging.getLogger(__name__)


class SparseReducer(GradientReducer):
    """Sums the selected part of the ranks' gradients into the flat buffer; what was not selected
    waits in the residual.

        1. each bucket, when its gradients are final:  small tensors aside | select | agree that all
           are finite | sparse sum
        2. after the last one:  small tensors and the slots in one dense allreduce; the small sums'
           momentum

    When a gradient is not finite on any rank, nothing is exchanged and slot 0, the loss, becomes
    NaN on all ranks: the step can't be used. A bad gradient never enters its rank's residual; the
    good ones of other ranks stay in theirs, to be sent later. With `check_first`, ranks agree
    before anything is added to a residual that every gradient is so small that the norm of the sum
    can't overflow, at the price of reading the gradient once more: then a bad step leaves no trace
    (where bad steps are skipped and training goes on).

    `names` are the parameters'. With `config.overlap`, buckets are exchanged on a thread while the
    backward pass goes on, over a communicator of its own.
    """

    def __init__(
        self,
        gradients: FlatGradients,
        names: Sequence[str],
        comm: Communicator,
        config: SparseConfig,
        seed: int = 0,
        check_first: bool = False,
    ) -> None:
        self._gradients = gradients
        self.slots = gradients.slots
        self._largest_square = None
        if check_first:
            most = float(np.finfo(gradients.flat.numpy().dtype).max)
            self._largest_square = most / comm.size**2
        self._comm = comm
        self._config = config
        self._flat: Array = gradients.flat.numpy()
        self._schedule = DensitySchedule(config)
        self._steps = 0
        self._scale = 1.0
        self._density = config.density
        self._layout = layout(names, gradients.ranges, config.densities, config.dense_below)
        self._small = np.zeros(self._layout.num_dense + gradients.slots.numel(), self._flat.dtype)
        self._velocity = np.zeros(
            self._layout.num_dense, self._flat.dtype
        )  # momentum of the small tensors
        self._nodes = split_nodes(comm) if config.hierarchical else None
        self._buckets = bucket_ranges(gradients.ranges, max(1, config.overlap))
        over = comm.split(0) if config.overlap else comm
        assert over is not None
        self._over = over
        self._parts = [
            self._part(bucket, seed + 1000 * number) for number, bucket in enumerate(self._buckets)
        ]
        self._failed: list[bool] = []
        self._sums: list[SparseSum] = []
        self._xi = Xi(comm, config.diagnose_every)
        driver = (ThreadDriver if config.overlap else InlineDriver)(self._reduce_bucket)
        self._scheduler = BucketScheduler(gradients.ranges, self._buckets, driver)
        if config.overlap:
            gradients.on_final(self._scheduler.ready)
        num_sparse = sum(part.size for _, ranges in self._layout.sparse for part in ranges)
        log.info(
            "sparse gradients by %s: %d elements sparse, %d dense",
            config.allreduce,
            num_sparse,
            self._layout.num_dense,
        )

    def begin(self) -> None:
        self._gradients.begin()

    def start(self) -> None:
        self._density = self._schedule.at(self._steps)
        self._failed, self._sums = [], []
        self._scheduler.begin()

    def finish(self) -> "SparseSums":
        self._gradients.complete()
        if not self._config.overlap:
            self._scale = self._clip_scale()
        self._scheduler.finish()
        velocity = self._velocity.copy()
        self._reduce_small()
        failed = any(self._failed)
        if failed:
            self._undo_exchanges()
            self.slots[0] = math.nan
        else:
            self._steps += 1
        return SparseSums(self, self._gradients, None if failed else velocity)

    def roll_back(self, velocity: Array) -> None:
        """As before the step, whose sums will not be used: what was selected is back in the
        residuals, and the small tensors have the momentum that they had, `velocity`.
        """
        self._undo_exchanges()
        self._velocity[...] = velocity
        self._steps -= 1

    def close(self) -> None:
        self._scheduler.close()

    def diagnostics(self) -> dict[str, float]:
        """Of the last step, on this rank: densities sent and received, residual over gradient norm,
        xi, seconds by phase.
        """
        size = max(1, sum(part.num_elements for part in self._parts))
        values = {
            name: sum(part.last.get(name, 0.0) * part.num_elements for part in self._parts) / size
            for name in ("density_sent", "density_result")
        }
        values["density"] = self._density
        norm = math.sqrt(sum(part.residual_norm() ** 2 for part in self._parts))
        values["residual_over_gradient"] = norm / max(
            float(torch.linalg.vector_norm(self._gradients.flat)), 1e-30
        )
        for part in self._parts:
            for phase, seconds in part.phases.take().items():
                values[f"seconds_{phase}"] = values.get(f"seconds_{phase}", 0.0) + seconds
        return {**values, **self._xi.last}

    def state_dict(self) -> dict[str, Any]:
        """This rank's residuals and thresholds, the small tensors' momentum, and the step that the
        warm-up has reached.
        """
        parts = [part.state_dict() for part in self._parts]
        return {"steps": self._steps, "velocity": self._velocity.copy(), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        self._velocity[...] = state["velocity"]
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def _part(self, bucket: Range, seed: int) -> SparsePart:
        inside = self._layout.within(bucket)
        if self._nodes:
            node, across = self._nodes
            return NodePart(self._flat[bucket.slice], inside, node, across, self._config, seed)
        return SparsePart(self._flat[bucket.slice], inside.sparse, self._over, self._config, seed)

    def _reduce_bucket(self, number: int) -> None:
        """Select, agree, exchange. Runs on the background thread when there is one; collective, in
        the order of buckets.
        """
        part = self._parts[number]
        if self._largest_square is not None:
            bad = any(self._failed) or not self._is_small(self._buckets[number])
            if agreed(self._over, bad):
                self._failed.append(True)
                return
        self._set_small_aside(self._buckets[number])
        failed = False
        try:
            part.select(self._density, self._scale)
        except NonFiniteError:
            failed = True
        self._failed.append(failed)
        if agreed(self._over, failed or any(self._failed)):
            self._failed[-1] = True
            if not failed:
                part.undo()
            return
        self._xi.before(self._steps, part)
        total = part.exchange(self._density)
        self._xi.after(total, part)
        part.finish_apply()
        self._sums.append(total)

    def _set_small_aside(self, bucket: Range) -> None:
        for where, place in self._small_ranges():
            if bucket.start <= place.start < bucket.stop:
                self._small[where.slice] = self._flat[place.slice]

    def _reduce_small(self) -> None:
        slots = self.slots.numpy()
        start = self._layout.num_dense
        self._small[start:] = slots
        self._comm.allreduce(self._small)
        slots[...] = self._small[start:]
        if self._config.momentum and not any(self._failed) and np.isfinite(self._small).all():
            self._velocity *= self._velocity.dtype.type(self._config.momentum)
            self._velocity += self._small[:start]
            self._small[:start] = self._velocity
        for where, place in self._small_ranges():
            self._flat[place.slice] = self._small[where.slice]

    def _undo_exchanges(self) -> None:
        for part, total in zip(self._parts, self._sums, strict=False):
            part.undo_exchange(total)

    def _is_small(self, bucket: Range) -> bool:
        """So small that no sum over the ranks overflows in its norm; false where not finite."""
        gradient = self._flat[bucket.slice]
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.dot(gradient, gradient) <= self._largest_square)

    def _small_ranges(self) -> list[tuple[Range, Range]]:
        """(place among the small elements, place in the gradient) of each dense range."""
        places, start = [], 0
        for part in self._layout.dense:
            places.append((Range(start, start + part.size), part))
            start += part.size
        return places

    def _clip_scale(self) -> float:
        """Local clipping (DGC, section 3.3): each rank clips its own gradient at clip_norm /
        sqrt(P), before accumulating it.
        """
        if self._config.clip_norm is None:
            return 1.0
        norm = float(torch.linalg.vector_norm(self._gradients.flat))
        limit = self._config.clip_norm / math.sqrt(self._comm.size)
        return limit / norm if math.isfinite(norm) and norm > limit else 1.0


class SparseSums(Full):
    """The summed selection; `velocity` is the small tensors' momentum before the step, None where
    the step has left no trace already.
    """

    def __init__(
        self, reducer: SparseReducer, gradients: FlatGradients, velocity: Array | None
    ) -> None:
        super().__init__(gradients.flat, gradients.slots)
        self._reducer = reducer
        self._velocity = velocity

    def roll_back(self) -> None:
        if self._velocity is not None:
            self._reducer.roll_back(self._velocity)


def resolve(config: SparseConfig, length: int, comm: Communicator) -> SparseConfig:
    """`config` with `auto` replaced by what the cost model, measured now, finds fastest; "none"
    where that is dense.
    """
    if config.allreduce != "auto":
        return config
    settings = Settings(values=config.values, qsgd_bits=config.qsgd_bits)
    name = (
        fastest(length, count_of(config.density, length), comm.size, settings, probe(comm))
        if comm.size > 1
        else "dense"
    )
    return dataclasses.replace(config, allreduce="none" if name == "dense" else name)


def bucket_ranges(ranges: Sequence[Range], num_buckets: int) -> list[Range]:
    """Consecutive parameters in at most `num_buckets` buckets of about equal size, the last
    parameters' first.
    """
    total = ranges[-1].stop
    buckets: list[Range] = []
    stop = total
    for part in reversed(ranges):
        full = stop - part.start >= total / num_buckets and len(buckets) < num_buckets - 1
        if full or part.start == 0:
            buckets.append(Range(part.start, stop))
            stop = part.start
    return buckets


def agreed(comm: Communicator, failed: bool) -> bool:
    """Has any rank failed? One word."""
    flag = np.array([failed], np.int32)
    comm.allreduce(flag, "max")
    return bool(flag[0])


def reshard_states(states: Sequence[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """The `SparseReducer` states of all ranks of a run as those of another number of ranks:
    residuals keep their sum.

    Thresholds and regions are left out: they depend on the number of ranks, and are found anew in
    the first step.
    """
    parts = range(len(states[0]["parts"]))
    dealt = [reshard([state["parts"][part]["arrays"] for state in states], ranks) for part in parts]
    same = {"steps": states[0]["steps"], "velocity": states[0]["velocity"]}
    return [
        {**same, "parts": [{"arrays": dealt[part][rank]} for part in parts]}
        for rank in range(ranks)
    ]
