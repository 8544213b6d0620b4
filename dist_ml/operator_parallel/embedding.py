"""Where activations begin: tables and products whose inputs every rank has, and whose outputs lie
as the layers between them want.

A vocabulary is cut along `first`: each rank looks up the tokens that it has, and the ranks'
vectors, of which one is not zero, are summed. All else is held by all ranks that have the same
features, and its gradient is summed over those that have other rows.
"""

from math import prod

import torch
from torch import nn

from dist_ml.models.spread import Spread, axes_of, own_range
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.boundary import Boundary
from dist_ml.operator_parallel.conversion import Conversion
from dist_ml.operator_parallel.grid import OperatorGrid
from dist_ml.operator_parallel.layout import LayerCut
from dist_ml.operator_parallel.words import (
    LayerWords,
    SharedLayer,
    allreduce_words,
    boundary_words,
)
from dist_ml.placement import Share


class ParallelEmbedding(nn.Embedding, SharedLayer):
    """A vocabulary whose vectors several ranks share, as the weights of a layer of `cut` are."""

    def __init__(self, num: int, width: int, cut: LayerCut, grid: OperatorGrid) -> None:
        self.tokens = own_range(num, grid.cuts(cut.outputs))
        columns = own_range(width, grid.cuts(cut.inputs))
        weight = torch.empty(self.tokens.size, columns.size)
        super().__init__(self.tokens.size, columns.size, _weight=weight)
        self.weight.share = Share(  # type: ignore[attr-defined]
            (num, width), (self.tokens, columns), grid.size("copies", "rows")
        )
        self.cut, self.width, self._grid = cut, width, grid
        self._boundary, self._holders = Boundary(cut.swapped(), grid), grid.along("copies", "rows")
        self._num_tokens = 1

    def words(self, num_rows: int) -> LayerWords:
        size = self._num_tokens * self.weight.shape[1]
        forward, backward = boundary_words(self._grid, self.cut.swapped(), num_rows, 0, size)
        copies = allreduce_words(self.weight.numel(), self._grid, "copies", "rows")
        return LayerWords(forward, backward + copies)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [b, positions], whole -> this rank's part of [b, positions, width]."""
        grid = self._grid
        grid.num_rows, self._num_tokens = len(tokens), prod(tokens.shape[1:])
        tokens = tokens[own_range(len(tokens), grid.cuts("copies", "rows")).slice]
        weight = collectives.copy(self.weight, self._holders)
        if not self._boundary.sums:
            return nn.functional.embedding(tokens, weight)
        mine = (tokens >= self.tokens.start) & (tokens < self.tokens.stop)
        places = torch.where(mine, tokens - self.tokens.start, 0)
        if self.tokens.size:
            vectors = nn.functional.embedding(places, weight) * mine[..., None]
        else:  # a rank beyond the vocabulary
            vectors = weight.new_zeros(*tokens.shape, weight.shape[1]) + weight.sum()
        return self._boundary.leave(vectors)


class ParallelTiedLinear(nn.Module, SharedLayer):
    """[…, width] -> […, num]: the product with each vector of the embedding, whose cut it has."""

    def __init__(self, embedding: ParallelEmbedding, enter: Conversion, grid: OperatorGrid) -> None:
        super().__init__()
        self.embedding = embedding
        self._enter, self._grid = enter, grid
        self._boundary, self._holders = Boundary(embedding.cut, grid), grid.along("copies", "rows")
        self._num_tokens = 1

    def words(self, num_rows: int) -> LayerWords:
        n, m = self.embedding.weight.shape
        sizes = self._num_tokens * m, self._num_tokens * n
        forward, backward = boundary_words(self._grid, self.embedding.cut, num_rows, *sizes)
        return LayerWords(forward, backward + allreduce_words(n * m, self._grid, "copies", "rows"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, …, width] -> [rows, …, num], this rank's part of each."""
        self._num_tokens = prod(x.shape[1:-1])
        x = self._enter(x)
        weight = collectives.copy(self.embedding.weight, self._holders)
        return self._boundary.leave(nn.functional.linear(self._boundary.enter(x), weight))


class ParallelPositions(nn.Embedding, SharedLayer):
    """Learned positions of an activation that lies as `given`."""

    def __init__(self, num: int, width: int, given: Spread, grid: OperatorGrid) -> None:
        columns = given.feature_range(width)
        super().__init__(num, columns.size, _weight=torch.empty(num, columns.size))
        self._grid, self._sides = grid, axes_of(given.rows)
        self._holders = grid.along(*self._sides)
        share_features(self.weight, (num, width), given, grid)

    def words(self, num_rows: int) -> LayerWords:  # noqa: ARG002
        return LayerWords(0, allreduce_words(self.weight.numel(), self._grid, *self._sides))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        weight = collectives.copy(self.weight, self._holders)
        return nn.functional.embedding(positions, weight)


class ParallelProjection(nn.Linear, SharedLayer):
    """[b, …, inputs], whole, -> [b, …, width], which lies as `made`: where an activation begins
    from numbers.
    """

    def __init__(
        self, inputs: int, width: int, enter: Conversion, made: Spread, grid: OperatorGrid
    ) -> None:
        rows = made.feature_range(width)
        super().__init__(1, 1)
        self.in_features, self.out_features = inputs, rows.size
        self.weight = nn.Parameter(torch.empty(rows.size, inputs))
        self.bias = nn.Parameter(torch.empty(rows.size))
        copies = grid.comm.size // grid.size(*axes_of(made.features))
        whole = own_range(inputs, ())
        self.weight.share = Share((width, inputs), (rows, whole), copies)  # type: ignore[attr-defined]
        self.bias.share = Share((width,), (rows,), copies)  # type: ignore[attr-defined]
        self._enter = enter
        self._grid, self._sides = grid, axes_of(made.rows)
        self._holders = grid.along(*self._sides)

    def words(self, num_rows: int) -> LayerWords:  # noqa: ARG002
        sizes = self.weight.numel(), self.bias.numel()
        return LayerWords(0, sum(allreduce_words(n, self._grid, *self._sides) for n in sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = collectives.copy(self.weight, self._holders)
        bias = collectives.copy(self.bias, self._holders)
        return nn.functional.linear(self._enter(x), weight, bias)


def share_features(
    parameter: torch.Tensor,
    shape: tuple[int, ...],
    given: Spread,
    grid: OperatorGrid,
    unit: int = 1,
) -> None:
    """Mark a parameter of the global `shape`, whose last dimension is features that lie as `given`,
    `unit` of them together, where they are cut.
    """
    if not given.features:
        return
    copies = grid.comm.size // grid.size(*axes_of(given.features))
    region = *(own_range(n, ()) for n in shape[:-1]), given.feature_range(shape[-1], unit)
    parameter.share = Share(shape, region, copies)  # type: ignore[attr-defined]
