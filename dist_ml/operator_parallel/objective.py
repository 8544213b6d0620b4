"""A model's objective where ranks hold different parts of its outputs."""

from dataclasses import dataclass
from math import prod

import torch

from dist_ml.models.objective import Objective, cross_entropy
from dist_ml.models.spread import WHOLE, Spread, axes_of
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.conversion import Conversion
from dist_ml.operator_parallel.cross_entropy import cross_entropy_sums
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.words import allreduce_words


@dataclass(frozen=True)
class ParallelObjective(Objective):
    """`base`'s sums of outputs that lie as `spread` over `grid`: the same on all its ranks.

    Cross-entropy leaves split classes where they are; other losses are computed on whole outputs,
    which are gathered first (words: outputs times (P-1)/P).
    """

    base: Objective | None = None
    spread: Spread = WHOLE
    grid: OperatorGrid | None = None
    num_outputs: int = 0

    def words(self, num_rows: int) -> int:
        """What this rank sends for the sums of `num_rows` rows, forward and backward."""
        grid, spread = self.grid, self.spread
        assert grid is not None
        b = spread.row_range(num_rows).size * self.items_per_sample
        classes = spread.feature_range(self.num_outputs).size
        if not self._splits_classes:
            others = prod(cut.parts for cut in (*spread.rows, *spread.features)) - 1
            return b * classes * others
        axes = axes_of(spread.features)
        words = allreduce_words(b, grid, *axes) + allreduce_words(3 * b, grid, *axes)
        if spread.rows:
            words += 2 * allreduce_words(1, grid, *axes_of(spread.rows))
        return words

    def whole(self, outputs: torch.Tensor) -> torch.Tensor:
        """Words: outputs times (P-1)/P."""
        assert self.grid is not None
        return Conversion(self.spread, WHOLE, self.grid, self.num_outputs)(outputs)

    @property
    def _splits_classes(self) -> bool:
        assert self.base is not None
        return self.base.loss_sum is cross_entropy and bool(self.spread.features)

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grid, base = self.grid, self.base
        assert grid is not None
        assert base is not None
        if not self._splits_classes:
            return base.sums(self.whole(outputs), targets)
        classes = self.spread.feature_range(self.num_outputs)
        own = targets[self.spread.row_range(len(targets)).slice]
        comm = grid.along(*axes_of(self.spread.features))
        loss, correct = cross_entropy_sums(outputs, own, classes, comm)
        if not self.spread.rows:
            return loss, correct
        holders = grid.along(*axes_of(self.spread.rows))
        correct = correct.to(loss.dtype)
        holders.allreduce(correct)
        return collectives.reduce(loss, holders), correct


def parallel_objective(
    base: Objective, spread: Spread, grid: OperatorGrid, num_outputs: int
) -> Objective:
    """`base` itself where all ranks hold the whole outputs."""
    if spread.is_whole:
        return base
    return ParallelObjective(
        base.loss_sum,
        base.metric_names,
        base.metric_sums,
        base.items_per_sample,
        base.bytewise,
        base=base,
        spread=spread,
        grid=grid,
        num_outputs=num_outputs,
    )
