"""Which distribution each layer of a chain should have: words of a step, the exact optimum by
dynamic programming, and coordinate descent beside it.

Ranks are a grid; along each of its axes a layer Y = X W is computed by one of three rules, and each
splits the work:

    rows      X split by rows, W whole      Y split by rows       dW is partial: allreduced
    columns   X whole, W by columns         Y split by columns
    inner     X by columns, W by rows       Y partial

Between layers an activation goes, along each axis, from what one makes to what the next one takes,
and its gradient the way back, where whole and partial change places. Words of a conversion along an
axis of p ranks, of a tensor with T words over these:

    split -> the same split        0        split -> whole      (p-1)/p T
    split -> the other split  (p-1)/p^2 T   partial -> split    (p-1)/p T
    whole -> any                   0        partial -> whole  2 (p-1)/p T

Rules compose over axes: T is divided by the other axes that split the tensor, which are converted
one after another, in the order with the fewest words.

Source: Chen, Li, Yu, Dong, Hoefler, "AutoDDL", IEEE TPDS 2024 (arXiv 2301.06813), sections 3, 4.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product
from typing import NamedTuple

LayerRules = tuple[str, ...]  # a rule along each axis of the grid

TAKES = {"rows": "rows", "columns": "whole", "inner": "columns"}  # how X lies
MAKES = {"rows": "rows", "columns": "columns", "inner": "partial"}  # how Y does
_SPLITS_WEIGHTS = ("columns", "inner")
_DUAL = {"whole": "partial", "partial": "whole"}  # of a gradient; splits stay


class Chain(NamedTuple):
    """Layers of `widths[i]` inputs and `widths[i + 1]` outputs on `num_rows` samples, over `grid`;
    the data lies as the first layer wants it, and nobody takes a partial result of the last.
    """

    widths: tuple[int, ...]
    num_rows: int
    grid: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.widths) - 1

    @property
    def choices(self) -> list[LayerRules]:
        return list(product(TAKES, repeat=len(self.grid)))


class Layouts(NamedTuple):
    """Rules of each layer, the words that a rank sends in a step, and how many costs of a layer or
    of a conversion were asked for.
    """

    rules: tuple[LayerRules, ...]
    words: float
    evaluations: int


class ChainCosts:
    """Words of one chain's parts, and how often they were asked for."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.evaluations = chain, 0
        self._known: dict[tuple[float, LayerRules, LayerRules], float] = {}

    def layer(self, index: int, rules: LayerRules) -> float:
        """Of the sum of a layer's weight gradients, over the axes along which they are partial."""
        self.evaluations += 1
        grid = self.chain.grid
        own = float(math.prod(self.chain.widths[index : index + 2]))
        for ranks, rule in zip(grid, rules, strict=True):
            own /= ranks if rule in _SPLITS_WEIGHTS else 1
        holders = math.prod(p for p, rule in zip(grid, rules, strict=True) if rule == "rows")
        return 2 * (holders - 1) / holders * own

    def between(self, index: int, before: LayerRules, after: LayerRules) -> float:
        """Of the activation that layer `index` takes, there and back."""
        self.evaluations += 1
        made = tuple(MAKES[rule] for rule in before)
        taken = tuple(TAKES[rule] for rule in after)
        return self._converted(index, made, taken)

    def end(self, rules: LayerRules) -> float:
        """Partial results of the last layer become rows."""
        self.evaluations += 1
        made = tuple(MAKES[rule] for rule in rules)
        taken = tuple("rows" if lies == "partial" else lies for lies in made)
        return self._converted(self.chain.num_layers, made, taken)

    def _converted(self, index: int, made: LayerRules, taken: LayerRules) -> float:
        size = float(self.chain.num_rows * self.chain.widths[index])
        back = tuple(_DUAL.get(x, x) for x in taken), tuple(_DUAL.get(x, x) for x in made)
        return self._boxed(size, made, taken) + self._boxed(size, *back)

    def _boxed(self, size: float, made: LayerRules, wanted: LayerRules) -> float:
        key = size, made, wanted
        if key not in self._known:
            axes = [i for i in range(len(made)) if made[i] != wanted[i]]
            self._known[key] = min(
                _in_order(size, self.chain.grid, made, wanted, order)
                for order in permutations(axes)
            )
        return self._known[key]

    def total(self, rules: Sequence[LayerRules]) -> float:
        layers = sum(self.layer(index, each) for index, each in enumerate(rules))
        moved = sum(
            self.between(index, *pair) for index, pair in enumerate(pairwise(rules), start=1)
        )
        return layers + moved + self.end(rules[-1])


def _in_order(
    size: float, grid: Sequence[int], made: LayerRules, wanted: LayerRules, order: Sequence[int]
) -> float:
    lies, words = list(made), 0.0
    for axis in order:
        others = (p for i, p in enumerate(grid) if i != axis and lies[i] in ("rows", "columns"))
        words += size / math.prod(others) * _along(grid[axis], lies[axis], wanted[axis])
        lies[axis] = wanted[axis]
    return words


def _along(ranks: int, made: str, wanted: str) -> float:
    """Words of a conversion along one axis, of a tensor of one word."""
    share = (ranks - 1) / ranks
    if made == "whole" or made == wanted or wanted == "partial":
        return 0.0
    if made == "partial":
        return share * (2 if wanted == "whole" else 1)
    return share if wanted == "whole" else share / ranks


def exact(chain: Chain) -> Layouts:
    """The fewest words: the best way to each choice of a layer by way of each one of the layer
    before. O(layers x choices^2).
    """
    costs, choices = ChainCosts(chain), chain.choices
    best: list[tuple[float, tuple[LayerRules, ...]]] = [
        (costs.layer(0, each), (each,)) for each in choices
    ]
    for index in range(1, chain.num_layers):
        own = [costs.layer(index, each) for each in choices]
        best = [
            min(
                (words + costs.between(index, way[-1], each) + more, (*way, each))
                for words, way in best
            )
            for each, more in zip(choices, own, strict=True)
        ]
    words, rules = min((words + costs.end(way[-1]), way) for words, way in best)
    return Layouts(rules, words, costs.evaluations)


def descend(chain: Chain, starts: Sequence[Sequence[LayerRules]]) -> Layouts:
    """Layer by layer, its best choice given its neighbours, until a sweep changes nothing; the best
    of all `starts`.
    """
    costs = ChainCosts(chain)
    found = [_descended(costs, list(start)) for start in starts]
    words, rules = min((costs.total(rules), rules) for rules in found)
    return Layouts(rules, words, costs.evaluations)


def _descended(costs: ChainCosts, rules: list[LayerRules]) -> tuple[LayerRules, ...]:
    changed = True
    while changed:
        changed = False
        for index in range(len(rules)):
            now = _around(costs, rules, index, rules[index])
            words, each = min(
                (_around(costs, rules, index, each), each) for each in costs.chain.choices
            )
            if words < now:
                rules[index], changed = each, True
    return tuple(rules)


def _around(
    costs: ChainCosts, rules: Sequence[LayerRules], index: int, chosen: LayerRules
) -> float:
    """What depends on one layer's choice."""
    before = costs.between(index, rules[index - 1], chosen) if index else 0.0
    if index + 1 < len(rules):
        after = costs.between(index + 1, chosen, rules[index + 1])
    else:
        after = costs.end(chosen)
    return before + costs.layer(index, chosen) + after


def uniform(chain: Chain, *rules: str) -> tuple[LayerRules, ...]:
    """Layers that take these rules in turn, along all axes: data parallel ("rows"), or pairs of
    column and row ("columns", "inner").
    """
    return tuple(
        (rules[index % len(rules)],) * len(chain.grid) for index in range(chain.num_layers)
    )


def grids(num_ranks: int, num_axes: int) -> Iterator[tuple[int, ...]]:
    """Of so many axes at most, none of one rank, in falling order."""
    if num_ranks == 1:
        yield ()
        return
    for first in range(2, num_ranks + 1):
        if num_ranks % first == 0:
            rest = grids(num_ranks // first, num_axes - 1) if num_axes > 1 else iter(())
            if first == num_ranks:
                rest = iter([()])
            yield from ((first, *more) for more in rest if not more or more[0] <= first)
