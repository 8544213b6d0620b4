"""How one linear layer Y = X W^T + bias is cut over the grid of operator ranks. Values.

With X [rows, inputs], W [outputs, inputs] and a layer whose `outputs` are cut along one side and
whose `inputs` along another:

    X    rows over copies, rows, outputs;  features over inputs      (data: see `reads_data`)
    W    outputs over outputs, rows;       inputs over inputs        (the same on all copies)
    Y    rows over copies, rows, inputs;   features over outputs

    forward    gather X over outputs, gather W over rows, multiply, reduce-scatter Y over inputs
    backward   gather dY over inputs; dX reduce-scattered over outputs, dW over rows (summed over
               copies), where X and W are gathered again unless they were kept

Y lies as the X of a layer in which the two sides have changed places, so that layers alternate and
nothing is redistributed between them. This is one scheme for all: 1-D layers cut `first` alone
(outputs: column; inputs: row), 2-D ones `rows` and `first`, 2.5-D ones `copies` too, 3-D ones
`rows`, `first` and `second`. With a `replicated` boundary, X is whole along the outputs' side and Y
along the inputs' side: allreduce takes the place of gather and reduce-scatter (Megatron's pair of
column and row).

Sources: Agarwal, Balle, Gustavson, Joshi, Palkar, "A three-dimensional approach to parallel matrix
multiplication", IBM J. R&D 39 (1995); Shoeybi et al., "Megatron-LM", 2019, section 3; Solomonik,
Demmel, "Communication-optimal parallel 2.5D matrix multiplication", Euro-Par 2011.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from dist_ml.errors import ConfigError
from dist_ml.models.spread import Spread
from dist_ml.operator_parallel.grid import Place, Sides


class Layout(NamedTuple):
    """What a layer's cut is like, before it is known which of the two sides its outputs take."""

    replicated: bool  # the boundary between layers is whole along the side that isn't cut there
    keeps: bool  # what was gathered is kept for the backward pass; else it is gathered again
    sides: tuple[str, ...]  # of the grid that it uses


# A new cut that this scheme covers is an entry here.
LAYOUTS: dict[str, Layout] = {
    "1d": Layout(replicated=True, keeps=True, sides=("first",)),
    "1d_sharded": Layout(replicated=False, keeps=True, sides=("first",)),
    "2d": Layout(replicated=False, keeps=False, sides=("rows", "first")),
    "2.5d": Layout(replicated=False, keeps=False, sides=("copies", "rows", "first")),
    "3d": Layout(replicated=False, keeps=True, sides=("rows", "first", "second")),
}


WHOLE_LAYER = "whole"  # the layout of a layer that isn't cut: every rank computes it alike


class LayerCut(NamedTuple):
    """One layer's cut: the layout, and the sides of the grid that cut its outputs and inputs.

    `reads_data`: the inputs are data, which every rank has and which take no gradient, so that
    none of them moves.
    """

    layout: Layout
    outputs: str
    inputs: str
    reads_data: bool = False

    @property
    def entering(self) -> tuple[str, ...]:
        """The sides along which inputs are gathered, and their gradients summed."""
        return () if self.reads_data else (self.outputs,)

    def given(self, grid: Place) -> Spread:
        """How the layer's inputs lie."""
        cut_at_entry = () if self.layout.replicated else self.entering
        return Spread(grid.cuts("copies", "rows", *cut_at_entry), grid.cuts(self.inputs))

    def made(self, grid: Place) -> Spread:
        """How the layer's outputs lie."""
        rows = ("copies", "rows") if self.layout.replicated else ("copies", "rows", self.inputs)
        return Spread(grid.cuts(*rows), grid.cuts(self.outputs))

    def swapped(self) -> "LayerCut":
        """The cut of a layer whose inputs lie as this one's outputs, and the other way round."""
        return LayerCut(self.layout, outputs=self.inputs, inputs=self.outputs)


def cut_for(name: str, given: Spread, place: Place, reads_data: bool = False) -> LayerCut:
    """The cut of a layer of layout `name` whose inputs come as `given`: the one that takes them so,
    else the one whose outputs are cut along `first`.
    """
    cuts = [
        LayerCut(LAYOUTS[name], outputs="first", inputs="second"),
        LayerCut(LAYOUTS[name], outputs="second", inputs="first"),
    ]
    cut = next((cut for cut in cuts if cut.given(place) == given), cuts[0])
    return cut._replace(reads_data=reads_data)


def sides_for(name: str, num_ranks: int, wanted: Sequence[int]) -> Sides:
    """The grid of layout `name` on `num_ranks` ranks: of the `wanted` sides, or else the sides that
    differ least. `ConfigError` for sides that don't fit.
    """
    makes = LAYOUTS[name].sides
    if not wanted:
        return min(all_sides(name, num_ranks), key=lambda sides: (sum(sides), sides[::-1]))
    names = [field for field in Sides._fields if field in makes]
    if len(wanted) != len(makes) or prod(wanted) != num_ranks:
        raise ConfigError(
            f"operator_parallel.grid={list(wanted)} must be {len(makes)} "
            f"side{'s' if len(makes) > 1 else ''} ({', '.join(names)}) of layout={name}, whose "
            f"product is mesh.operator={num_ranks}"
        )
    return Sides(**dict(zip(names, wanted, strict=True)))


def all_sides(name: str, num_ranks: int) -> list[Sides]:
    """Every grid that layout `name` can have on `num_ranks` ranks."""
    names = [field for field in Sides._fields if field in LAYOUTS[name].sides]
    ranges = [range(1, num_ranks + 1)] * len(names)
    return [
        Sides(**dict(zip(names, sizes, strict=True)))
        for sizes in product(*ranges)
        if prod(sizes) == num_ranks
    ]
