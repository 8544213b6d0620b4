"""HammingMesh: boards that are meshes, whose rows and columns of accelerators are joined by
switches.
"""

from collections.abc import Iterator
from fractions import Fraction

from dist_ml.networks.network import Network, Node, Parts, Route, require

_RADIX = 64  # ports of a switch


class HammingMesh(Network):
    """Boards of `a` x `b` accelerators, `x` x `y` of them; a row of accelerators through a row of
    boards has a switch of 2 x ports (or a small fat tree, where that is too many), a column one of
    2 y.

    Traffic leaves its board at most once along each dimension, by the nearer edge: along x, then
    y, or the other way round, half each.

    Source: Hoefler et al., SC 2022, section III.
    """

    num_links = 4

    def __init__(self, a: int, b: int, x: int, y: int) -> None:
        require(
            min(a, b) >= 1 and min(x, y) >= 2,
            f"a HammingMesh of {x} x {y} boards of {a} x {b} accelerators",
            "there are at least 2 x 2 boards of 1 x 1",
        )
        self.a, self.b, self.x, self.y = a, b, x, y
        self.num_accelerators = a * b * x * y
        self.name = f"{a} x {b} HammingMesh of {x} x {y} boards"

    @property
    def parts(self) -> Parts:
        a, b, boards = self.a, self.b, self.x * self.y
        on_boards = boards * (b * (a - 1) + a * (b - 1))
        ports = 2 * boards * (b * _levels(2 * self.x) + a * _levels(2 * self.y))
        tree_cables = 2 * boards * (b * (_levels(2 * self.x) > 1) + a * (_levels(2 * self.y) > 1))
        return Parts(ports, on_boards, 2 * boards * b, 2 * boards * a + tree_cables)

    @property
    def diameter(self) -> int:
        """To the edge, up to the switch and down, and from the edge, along both dimensions."""
        return sum(2 * ((side - 1) // 2) + 2 for side in (self.a, self.b))

    @property
    def global_share(self) -> Fraction:
        """The busiest links are a board's exits, or the middle of a large board."""
        n = self.num_accelerators
        busiest = max(
            max(_exit_load(n, side, boards), _inner_load(n, side, boards))
            for side, boards in ((self.a, self.x), (self.b, self.y))
        )
        return min(Fraction(1), Fraction(n - 1, 4) / busiest)

    @property
    def allreduce_share(self) -> Fraction:
        """Any rows and columns of boards are a virtual torus, all of whose links two rings use."""
        return Fraction(1)

    def routes(self, source: int, target: int) -> Iterator[tuple[Fraction, Route]]:
        start, stop = self._place(source), self._place(target)
        for first in (0, 1):
            corner = (stop[0], start[1]) if first == 0 else (start[0], stop[1])
            route: list[Node] = [self._number(*start)]
            for before, after in ((start, corner), (corner, stop)):
                along = 0 if before[0] != after[0] else 1
                route += self._line(before, after, along) if before != after else []
            yield Fraction(1, 2), tuple(route)

    def _place(self, accelerator: int) -> tuple[int, int]:
        return divmod(accelerator, self.b * self.y)

    def _number(self, column: int, row: int) -> int:
        return column * self.b * self.y + row

    def _line(self, start: tuple[int, int], stop: tuple[int, int], along: int) -> list[Node]:
        """From a place to one that differs along one dimension: what comes after the start."""
        side, other = (self.a, self.b)[along], start[1 - along]
        (from_board, at), (to_board, to) = divmod(start[along], side), divmod(stop[along], side)

        def numbers(board: int, places: range) -> list[Node]:
            flat = [board * side + place for place in places]
            return [self._number(*((p, other) if along == 0 else (other, p))) for p in flat]

        if from_board == to_board:
            step = 1 if to > at else -1
            return numbers(from_board, range(at + step, to + step, step))
        out = range(at - 1, -1, -1) if 2 * at < side else range(at + 1, side)
        back = range(to + 1) if 2 * to < side else range(side - 1, to - 1, -1)
        switch = ("switch", along, other)
        return [*numbers(from_board, out), switch, *numbers(to_board, back)]


def _levels(ports: int) -> int:
    """Ports that a switch of so many takes, each: 3 where two levels of switches stand for it."""
    return 1 if ports <= _RADIX else 3


def _exit_load(n: int, side: int, boards: int) -> Fraction:
    """Of one edge's link to the switch: of half of the side, what goes to other boards."""
    return Fraction(-(-side // 2) * n * (boards - 1), boards)


def _inner_load(n: int, side: int, boards: int) -> Fraction:
    """Of a board's busiest inner link. One between `k` and `side - k` places carries what the `k`
    send to other boards or get from them, as far as their nearer edge lies that way, and what the
    two sides send each other.
    """
    unit = Fraction(n, side * boards)  # from a place to all with one coordinate along the line
    carried = [Fraction(0)]
    for k in range(1, side):  # the link from place k to place k - 1
        leaving = sum(1 for place in range(k, side) if 2 * place < side)
        arriving = sum(1 for place in range(k) if 2 * place >= side)
        crossing = (leaving + arriving) * side * (boards - 1)
        carried.append(unit * (crossing + k * (side - k)))
    return max(carried)
