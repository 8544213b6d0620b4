"""Error feedback around one sparse allreduce: select, exchange, remember, for one vector or one
bucket of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SparseAllreduce, SparseSum, make
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.merge import merge_all
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.flat_state import FlatState, Rows
from dist_ml.data_parallel.residual import MomentumResidual, Residual
from dist_ml.data_parallel.selection import SELECTIONS, Selection, count_of
from dist_ml.data_parallel.sparse_choice import exchange_settings
from dist_ml.errors import NonFiniteError
from dist_ml.measure.timer import Phases
from dist_ml.partition import Range

# How the state of each array is named.
_KINDS = {"values": "residual", "velocity": "velocity"}


@dataclass
class SelectionGroup:
    """Ranges that share a density, with their own threshold."""

    density: float | None
    residual: Residual
    selection: Selection


class SparsePart:
    """The sum over `comm` of what ranks select from `vector`, a flat array that each rank owns a
    copy of.

    `select`, then `exchange`, once a step. `groups` are the ranges that take part, with densities
    of their own or None for the warm-up's; the residual is this rank's, one array of the vector's
    length (two with momentum correction).
    """

    def __init__(
        self,
        vector: Array,
        groups: Sequence[tuple[float | None, Sequence[Range]]],
        comm: Communicator,
        config: SparseConfig,
        seed: int = 0,
    ) -> None:
        self.vector = vector
        self.comm = comm
        self.phases = Phases()
        self._config = config
        self._seed = seed
        self.arrays = {"values": np.zeros_like(vector)}
        if config.momentum:
            self.arrays["velocity"] = np.zeros_like(vector)
        self.groups = [
            self._group(density, ranges, number) for number, (density, ranges) in enumerate(groups)
        ]
        self._own = Entries.none(vector.dtype)
        self._extracted: list[tuple[SelectionGroup, Entries]] = []
        settings = exchange_settings(config, vector.dtype.name, seed)
        self._exchange: SparseAllreduce = make(config.allreduce, comm, vector.size, settings)
        self.last: dict[str, float] = {}

    @property
    def num_elements(self) -> int:
        """Of the vector, those that take part."""
        return sum(group.residual.length for group in self.groups)

    def select(self, density: float, scale: float = 1.0) -> None:
        """Add `scale * vector` to the residual and take this step's entries out. `NonFiniteError`,
        on this rank, undoes it.
        """
        with self.phases("select"):
            extracted: list[tuple[SelectionGroup, Entries]] = []
            try:
                for group in self.groups:
                    k = count_of(group.density or density, group.residual.length)
                    extracted.append(
                        (group, group.selection.select(group.residual, self.vector, k, scale))
                    )
            except NonFiniteError:
                self._extracted = []
                for group, entries in extracted:
                    group.residual.undo(self.vector, [entries], scale)
                self._own = Entries.none(self.vector.dtype)
                raise
            self._extracted = extracted
            self._own = merge_all(
                [Entries.none(self.vector.dtype), *(entries for _, entries in extracted)]
            )

    def undo(self) -> None:
        """Put what was selected back: some other rank's gradient is not finite.

        The accumulated gradient stays in the residual, finite as it is: the gradient that would
        have to be subtracted may be gone by now, and delaying it is what a residual does.
        """
        for _, entries in self._extracted:
            self.groups[0].residual.restore(entries)

    def exchange(self, density: float) -> SparseSum:
        """Sum what was selected over the ranks, and overwrite the ranges of `vector` with the sum.
        Collective.
        """
        if not self.groups:
            return SparseSum(self._own)
        k = sum(count_of(group.density or density, group.residual.length) for group in self.groups)
        with self.phases("exchange"):
            total = self._exchange.reduce(self._own, k)
        with self.phases("apply"):
            self._remember(total)
            self._write(total)
        length = max(1, self.num_elements)
        self.last = {
            "density_sent": self._own.size / length,
            "density_result": total.nonzeros() / length,
        }
        return total

    def finish_apply(self) -> None:
        """What is left to do when `vector` holds the sum."""

    def undo_exchange(self, total: SparseSum) -> None:
        """As `undo`, after the exchange: the step's sum will not be used."""
        if not self.groups:
            return
        residual = self.groups[0].residual  # all groups share its arrays
        residual.unmask_momentum()
        for entries in total.returned:
            residual.restore(Entries(entries.indices, -entries.values))
        self.undo()

    def residual_norm(self) -> float:
        return float(np.sqrt(sum(group.residual.norm() ** 2 for group in self.groups)))

    def accumulated(self) -> Array:
        """Everything that was to be sent in this step: selected entries and residual. A copy."""
        whole = self.arrays["values"].copy()
        whole[self._own.indices] += self._own.values
        return whole

    def tensors(self, start: int) -> list[FlatState]:
        """The arrays of what takes part, where the vector begins at `start` of the flat gradient;
        each rank of `comm` has its own.
        """
        rows = Rows(self.comm.rank, self.comm.size, "sum")
        return [
            FlatState(
                f"{_KINDS[name]}/{{}}",
                Range(start + part.start, start + part.stop),
                torch.from_numpy(array)[part.slice],
                rows,
            )
            for name, array in self.arrays.items()
            for group in self.groups
            for part in group.residual.ranges
        ]

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, and what the exchange remembers."""
        return {
            "selections": [group.selection.state_dict() for group in self.groups],
            "exchange": self._exchange.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group, saved in zip(self.groups, state["selections"], strict=True):
            group.selection.load_state_dict(saved)
        self._exchange.load_state_dict(state["exchange"])

    def _group(self, density: float | None, ranges: Sequence[Range], number: int) -> SelectionGroup:
        selection = SELECTIONS[self._config.selection](
            self._config.threshold_steps, self._seed + number
        )
        if self._config.momentum:
            residual: Residual = MomentumResidual(
                self.arrays["values"], self._config.momentum, self.arrays["velocity"], ranges
            )
        else:
            residual = Residual(self.arrays["values"], ranges)
        return SelectionGroup(density, residual, selection)

    def _remember(self, total: SparseSum) -> None:
        for entries in total.returned:
            self.groups[0].residual.restore(entries)  # all groups share its arrays
        if self._config.momentum and self._config.factor_masking:
            self.groups[0].residual.mask_momentum(self._in_result(total))

    def _in_result(self, total: SparseSum) -> Array:
        """The indices this rank selected that the result holds."""
        own = self._own.indices
        if total.entries is None:
            return own
        if not total.entries.size:
            return own[:0]
        at = np.minimum(np.searchsorted(total.entries.indices, own), total.entries.size - 1)
        inside: Array = own[total.entries.indices[at] == own]
        return inside

    def _write(self, total: SparseSum) -> None:
        for group in self.groups:
            for part in group.residual.ranges:
                self.vector[part.slice] = 0 if total.dense is None else total.dense[part.slice]
        if total.entries is not None:
            self.vector[total.entries.indices] = total.entries.values
