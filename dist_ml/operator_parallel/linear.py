"""A linear layer of which each rank of the operator axis holds a part."""

from math import prod

import torch
from torch import nn

from dist_ml.kernels.tuner import Tuner
from dist_ml.models.spread import axes_of, own_range
from dist_ml.nn.linear import TunedLinear
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.boundary import Boundary
from dist_ml.operator_parallel.conversion import Conversion
from dist_ml.operator_parallel.gathered_product import Gathering, gathered_product
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import LayerCut
from dist_ml.operator_parallel.words import Layer, LayerWords, SharedLayer, layer_words
from dist_ml.partition import Range, counts
from dist_ml.placement import Share


class ParallelLinear(TunedLinear, SharedLayer):
    """This rank's part of a linear layer; `layout.py` says which, and what moves when.

    Parameters, with their shares of the whole, are the part's. The local product runs on the tuned
    kernels where the weights needn't be gathered. The bias is cut as the outputs are, and added
    once, after the sum; its gradient is summed over the ranks that hold other rows of the outputs.
    """

    def __init__(
        self,
        layer: Layer,
        cut: LayerCut,
        grid: OperatorGrid,
        enter: Conversion,
        kernel: str,
        tuner: Tuner,
    ) -> None:
        """`layer`: the whole one; `enter`: to how it wants its inputs."""
        _, inputs, outputs, units = layer
        columns = own_range(inputs, grid.cuts(cut.inputs), units[0])
        own_outputs = own_range(outputs, grid.cuts(cut.outputs), units[1])
        rows = own_range(own_outputs.size, grid.cuts("rows"))
        part = nn.Linear(1, 1)  # whose first values nobody needs to draw
        part.in_features, part.out_features = columns.size, own_outputs.size
        part.weight = nn.Parameter(torch.empty(rows.size, columns.size))
        part.bias = nn.Parameter(torch.empty(own_outputs.size))
        super().__init__(part, kernel, tuner)
        rows = Range(own_outputs.start + rows.start, own_outputs.start + rows.stop)
        copies = grid.size("copies")
        self.weight.share = Share((outputs, inputs), (rows, columns), copies)  # type: ignore[attr-defined]
        copies *= grid.size("rows", cut.inputs)
        self.bias.share = Share((outputs,), (own_outputs,), copies)  # type: ignore[attr-defined]
        self._cut, self._grid, self._enter = cut, grid, enter
        self._layer = layer
        self._row_items = 1  # vectors of a row, as last seen
        self._boundary = Boundary(cut, grid)
        self._gathering = None
        if grid.size("rows", "copies") > 1:
            self._gathering = Gathering(grid, cut, counts(own_outputs.size, grid.size("rows")))
        self._bias_holders = grid.along(*axes_of(cut.made(grid).rows))

    def words(self, num_rows: int) -> LayerWords:
        return layer_words(self._grid, self._cut, self._layer, num_rows, row_items=self._row_items)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, …, inputs] -> [rows, …, outputs], this rank's part of each."""
        self._row_items = prod(x.shape[1:-1])
        x = self._enter(x)
        bias = collectives.copy(self.bias, self._bias_holders)
        if self._gathering is not None:
            self.leave_gradient_to_autograd()
            return gathered_product(x, self.weight, self._gathering).add_(bias)
        x = self._boundary.enter(x)
        if not self._boundary.sums:
            return self.affine(x, bias)
        return self._boundary.leave(self.affine(x, None)).add_(bias)
