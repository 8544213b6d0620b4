"""A model's objective where ranks hold different parts of its outputs."""

from dataclasses import dataclass

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

    Rows stay where they are, and so do split classes under cross-entropy; other losses are computed
    on all of a row's outputs, which are gathered first.
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
        axes, summed = axes_of(spread.features), 0
        if spread.rows:
            summed = allreduce_words(self.num_slots, grid, *axes_of(spread.rows))
        if not self._splits_classes:
            return summed + b * classes * (grid.size(*axes) - 1)
        return summed + allreduce_words(b, grid, *axes) + allreduce_words(3 * b, grid, *axes)

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
        rows, features = self.spread.rows, self.spread.features
        own = targets[self.spread.row_range(len(targets)).slice]
        sums: tuple[torch.Tensor, ...]
        if self._splits_classes:
            classes = self.spread.feature_range(self.num_outputs)
            sums = cross_entropy_sums(outputs, own, classes, grid.along(*axes_of(features)))
        else:
            all_features = Conversion(self.spread, Spread(rows), grid, self.num_outputs)
            sums = base.sums(all_features(outputs), own)
        if not rows:
            return sums
        of_own_rows = torch.stack([each.to(outputs.dtype) for each in sums])
        loss, *metrics = collectives.reduce(of_own_rows, grid.along(*axes_of(rows))).unbind()
        return loss, *(metric.detach() for metric in metrics)


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
