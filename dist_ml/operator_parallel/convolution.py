"""Convolutions whose channels ranks share: a convolution is a product over channels, at each pixel
of the kernel, so the 1-D cut of a linear layer is its cut, too.
"""

from math import prod

import torch
from torch import nn

from dist_ml.models.spread import own_range
from dist_ml.operator_parallel.boundary import Boundary
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import LayerCut
from dist_ml.operator_parallel.words import LayerWords, SharedLayer, boundary_words
from dist_ml.partition import Range
from dist_ml.placement import Share


class ParallelConvolution(nn.Conv2d, SharedLayer):
    """This rank's part of a convolution without bias, by a 1-D `cut`: output channels, for which
    gradients of the images are summed; or input channels, for which the results are.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int,
        units: tuple[int, int],
        cut: LayerCut,
        grid: OperatorGrid,
    ) -> None:
        """`channels`: in and out, of the whole."""
        own_in = own_range(channels[0], grid.cuts(cut.inputs), units[0])
        own_out = own_range(channels[1], grid.cuts(cut.outputs), units[1])
        super().__init__(1, 1, kernel, stride, kernel // 2, bias=False)
        self.in_channels, self.out_channels = own_in.size, own_out.size
        self.weight = nn.Parameter(torch.empty(own_out.size, own_in.size, kernel, kernel))
        square = Range(0, kernel)
        self.weight.share = Share(  # type: ignore[attr-defined]
            (channels[1], channels[0], kernel, kernel), (own_out, own_in, square, square), 1
        )
        self._boundary = Boundary(cut, grid)
        self._grid, self._cut = grid, cut
        self._sizes = 0, 0  # numbers of a sample, before and after, as last seen

    def words(self, num_rows: int) -> LayerWords:
        return boundary_words(self._grid, self._cut, num_rows, *self._sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, in, h, w] -> [b, out, h', w'], this rank's channels of each."""
        x = self._boundary.enter(x)
        if self.in_channels and self.out_channels:
            y = super().forward(x)
        else:  # fewer groups of channels than ranks: nothing to add, but gradients to take part in
            size = [-(-n // stride) for n, stride in zip(x.shape[2:], self.stride, strict=True)]
            y = x.new_zeros(len(x), self.out_channels, *size) + x.sum() * 0 + self.weight.sum()
        self._sizes = prod(x.shape[1:]), prod(y.shape[1:])
        return self._boundary.leave(y)
