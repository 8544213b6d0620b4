"""A sum of N terms in an order that depends on N alone, whoever holds which of them.

    level 3              0-7                 8-10          and 0-10 on level 4
                      /       \\               |
          2        0-3         4-7           8-10          a node is the sum of two neighbours
                  /   \\       /   \\        /    \\
          1     0-1   2-3   4-5   6-7    8-9     10
                / \\   / \\   / \\   / \\    / \\      |       or, without a sibling, its only child
          0    0   1 2   3 4   5 6   7  8   9    10

Terms are added as soon as both of a pair are there, in whatever order they come: a sum of two has
the same bits both ways. Terms that come in order leave at most log2 N sums waiting.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from dist_ml.partition import Range


class Node(NamedTuple):
    """The sum of the terms [number 2^level, (number + 1) 2^level) that there are."""

    level: int
    number: int


class SummationTree:
    """The sums of `num_terms` tensors of one shape that can be formed of what was `add`ed so
    far.
    """

    def __init__(self, num_terms: int) -> None:
        self._num_terms = num_terms
        self._sums: dict[Node, torch.Tensor] = {}

    def clear(self) -> None:
        """No term was added."""
        self._sums.clear()

    def add(self, node: Node, values: torch.Tensor) -> None:
        """A term, or a sum of terms; `values` belong to the tree now, which adds in place."""
        while 1 << node.level < self._num_terms:
            sibling = Node(node.level, node.number ^ 1)
            if sibling.number << sibling.level < self._num_terms:
                other = self._sums.pop(sibling, None)
                if other is None:
                    break
                values = other.add_(values)
            node = Node(node.level + 1, node.number // 2)
        assert node not in self._sums, f"{node} was added before"
        self._sums[node] = values

    def take(self, node: Node) -> torch.Tensor:
        """The sum that is `node`, which no other term can join yet."""
        return self._sums.pop(node)


def subtrees(terms: Range, num_terms: int) -> list[Node]:
    """The sums that consecutive terms add up to, as few as there can be: at most 2 log2 of their
    number, in order.
    """
    return list(_subtrees(terms, num_terms))


def _subtrees(terms: Range, num_terms: int) -> Iterator[Node]:
    start = terms.start
    while start < terms.stop:
        level = 0
        while 1 << level < num_terms:
            width = 2 << level
            if start % width or min(start + width, num_terms) > terms.stop:
                break
            level += 1
        yield Node(level, start >> level)
        start += 1 << level
