"""What crosses the ends of a layer that ranks share: before its product, and after it."""

import torch

from dist_ml.models.spread import own_range
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import LayerCut
from dist_ml.partition import counts


class Boundary:
    """The collectives around the product of a layer of `cut`; words: `words.boundary_words`.

    `outputs`: the ranks among which X moves (this one alone where it is data); `inputs`: those
    among which Y does.
    """

    def __init__(self, cut: LayerCut, grid: OperatorGrid) -> None:
        self._grid, self._replicated = grid, cut.layout.replicated
        self.outputs, self.inputs = grid.along(*cut.entering), grid.along(cut.inputs)

    @property
    def sums(self) -> bool:
        """Does `leave` sum? Then a bias is added after it."""
        return self.inputs.size > 1

    def row_counts(self, num_ranks: int) -> list[int]:
        """The rows on each of `num_ranks` ranks among which this rank's block of rows is cut."""
        block = own_range(self._grid.num_rows, self._grid.cuts("copies", "rows"))
        return counts(block.size, num_ranks)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the inputs [rows, …] -> those of its product."""
        if self._replicated:
            return collectives.copy(x, self.outputs)
        return collectives.gather(x, self.outputs, self.row_counts(self.outputs.size))

    def leave(self, y: torch.Tensor) -> torch.Tensor:
        """What this rank's product came to [rows, …] -> its part of the outputs, which are sums."""
        if self._replicated:
            return collectives.reduce(y, self.inputs)
        return collectives.scatter(y, self.inputs, self.row_counts(self.inputs.size))
