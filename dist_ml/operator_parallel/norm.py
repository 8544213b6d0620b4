"""Norms of activations that ranks share."""

from math import prod

import torch
from torch import nn
from torch.nn import functional

from dist_ml.models.spread import Spread, axes_of
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.embedding import share_features
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.words import LayerWords, SharedLayer, allreduce_words


class ParallelNorm(nn.LayerNorm, SharedLayer):
    """Layer norm of an activation that lies as `given`.

    Where features are cut, mean and variance are those of all of them. Words: two allreduces of a
    word a row each way; and, where rows are cut, one of the parameters' gradients.
    """

    def __init__(self, width: int, given: Spread, grid: OperatorGrid) -> None:
        super().__init__(given.feature_range(width).size)
        self._width, self._is_cut = width, bool(given.features)
        for parameter in (self.weight, self.bias):
            share_features(parameter, (width,), given, grid)
        self._along = grid.along(*axes_of(given.features))
        self._holders = grid.along(*axes_of(given.rows))
        self._grid, self._given, self._num_vectors = grid, given, 1

    def words(self, num_rows: int) -> LayerWords:
        rows, features = axes_of(self._given.rows), axes_of(self._given.features)
        shared = 2 * allreduce_words(self.weight.numel(), self._grid, *rows)
        if not self._is_cut:
            return LayerWords(0, shared)
        means = self._given.row_range(num_rows).size * self._num_vectors
        moved = 2 * allreduce_words(means, self._grid, *features)
        return LayerWords(moved, moved + shared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._num_vectors = prod(x.shape[1:-1])
        weight = collectives.copy(self.weight, self._holders)
        bias = collectives.copy(self.bias, self._holders)
        if not self._is_cut:
            return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        centred = x - self._mean(x)
        variance = self._mean(centred.square())
        return centred * (variance + self.eps).rsqrt() * weight + bias

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        """Over all features; each rank goes on with features of its own, so that gradients of the
        mean are summed, too.
        """
        total = collectives.reduce(x.sum(-1, keepdim=True), self._along)
        return collectives.copy(total / self._width, self._along)


class ParallelGroupNorm(nn.GroupNorm):
    """Group norm of channels that lie as `given`, groups being on one rank each."""

    def __init__(self, groups: int, channels: int, given: Spread, grid: OperatorGrid) -> None:
        own = given.feature_range(channels, channels // groups)
        own_groups = own.size * groups // channels
        super().__init__(max(1, own_groups), max(1, own.size))
        self.num_groups, self.num_channels = own_groups, own.size
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(own.size))
            share_features(parameter, (channels,), given, grid, channels // groups)
            setattr(self, name, parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.num_groups:  # fewer groups than ranks
            return x * self.weight[None, :, None, None]
        return super().forward(x)
