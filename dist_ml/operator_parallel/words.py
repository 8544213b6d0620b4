"""The words that a layer moves, told before it is made: closed forms for any sizes.

They are those of the direct algorithms of the ledger (`comm/traffic.py`). Where sizes divide they
are, with b rows, m inputs, n outputs and P ranks of the operator axis:

    1d      column: 0, and 2 (P-1)/P b m backward;  row: 2 (P-1)/P b n forward, and 0
    2d      pair m -> n -> m, P = q^2: (q-1)/q^2 (2 b m + 2 m n), and (q-1)/q^2 (3 b m + 4 m n)

so that for pairs of square layers 2-D moves less than 1-D from b = 6 m / (4 sqrt(P) - 1) on.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from dist_ml.comm import traffic
from dist_ml.models.spread import WHOLE, axes_of, own_range
from dist_ml.operator_parallel.grid import Place, Sides
from dist_ml.operator_parallel.layout import LAYOUTS, LayerCut, all_sides, cut_for
from dist_ml.partition import block


class Layer(NamedTuple):
    """One linear layer of a model."""

    name: str
    inputs: int
    outputs: int
    units: tuple[int, int] = (1, 1)


class LayerWords(NamedTuple):
    """Words that a rank sends in a pass over one layer."""

    forward: int
    backward: int


class SharedLayer(ABC):
    """A layer that ranks share, which tells what it moves."""

    @abstractmethod
    def words(self, num_rows: int) -> LayerWords:
        """What this rank sends for `num_rows` rows over all ranks, of the shape last seen."""


def layer_words(
    place: Place,
    cut: LayerCut,
    layer: Layer,
    num_rows: int,
    bias: bool = True,
    row_items: int = 1,
) -> LayerWords:
    """Of the rank at `place`, for `num_rows` rows over all ranks, of `row_items` vectors each
    (tokens).
    """
    n = own_range(layer.outputs, place.cuts(cut.outputs), layer.units[1]).size
    m = own_range(layer.inputs, place.cuts(cut.inputs), layer.units[0]).size
    x, y = row_items * m, row_items * n
    forward, backward = boundary_words(place, cut, num_rows, x, y)
    own_w = own_range(n, place.cuts("rows")).size * m
    gather_w = own_w * (place.size("rows") - 1)
    forward += gather_w
    backward += n * m - own_w + allreduce_words(own_w, place, "copies")
    if not cut.layout.keeps and place.size("rows", "copies") > 1:
        backward += boundary_words(place, cut, num_rows, x, 0).forward
        backward += 0 if cut.reads_data else gather_w
    if bias:
        backward += allreduce_words(n, place, *axes_of(cut.made(place).rows))
    return LayerWords(forward, backward)


def model_words(
    layout: str,
    sides: Sides,
    layers: Iterable[Layer],
    num_rows: int,
    rank: int = 0,
    first_gradient: bool = False,
    bias: bool = True,
    row_items: int = 1,
) -> list[LayerWords]:
    """Of each layer of a chain, on one rank, for `num_rows` rows of `row_items` vectors each;
    `first_gradient`: the first one's inputs are no data, but lie as it wants them and have a
    gradient.
    """
    place, spread, found = Place(sides, rank), WHOLE, []
    for number, layer in enumerate(layers):
        cut = cut_for(layout, spread, place, reads_data=number == 0 and not first_gradient)
        found.append(layer_words(place, cut, layer, num_rows, bias, row_items))
        spread = cut.made(place)
    return found


def fewest_words(
    layers: list[Layer],
    num_rows: int,
    num_ranks: int,
    names: Iterable[str] = LAYOUTS,
    row_items: int = 1,
) -> tuple[str, Sides]:
    """The layout, of `names`, and the sides of its grid with the fewest words a step, of `num_rows`
    rows of `row_items` vectors each.
    """
    candidates = [(name, sides) for name in names for sides in all_sides(name, num_ranks)]

    def total(candidate: tuple[str, Sides]) -> int:
        words = model_words(*candidate, layers, num_rows, row_items=row_items)
        return sum(map(sum, words))

    return min(candidates, key=total)


def allreduce_words(n: int, place: Place, *sides: str) -> int:
    """Of n words over the ranks along `sides`."""
    size = place.size(*sides)
    own = block(n, size, place.position(sides))
    return traffic.allreduce_words(n, own.size, size).sent if size > 1 else 0


def boundary_words(
    place: Place, cut: LayerCut, num_rows: int, x_words: int, y_words: int
) -> LayerWords:
    """Of X and Y, of `x_words` and `y_words` a row on this rank, before and after a layer."""
    b = own_range(num_rows, place.cuts("copies", "rows")).size
    x, y = b * x_words, b * y_words
    if cut.layout.replicated:
        return LayerWords(
            allreduce_words(y, place, cut.inputs), allreduce_words(x, place, *cut.entering)
        )
    own_x = own_range(b, place.cuts(*cut.entering)).size * x_words
    own_y = own_range(b, place.cuts(cut.inputs)).size * y_words
    forward = own_x * (place.size(*cut.entering) - 1) + y - own_y
    return LayerWords(forward, own_y * (place.size(cut.inputs) - 1) + x - own_x)
