"""A two-dimensional torus: four links an accelerator, no switches."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

from dist_ml.networks.network import Network, Parts, Route, require


class Torus(Network):
    """`width` x `height` accelerators, on square boards of `board` x `board`, whose links are
    traces.

    Traffic goes along x, then along y, or the other way round, half each; opposite places on a ring
    are reached both ways round.
    """

    num_links = 4

    def __init__(self, width: int, height: int, board: int = 1) -> None:
        require(
            min(width, height) > 2 and width % board == height % board == 0,
            f"a torus of {width} x {height} accelerators on boards of {board} x {board}",
            "sides are above 2 and multiples of the board's",
        )
        self.width, self.height, self.board = width, height, board
        self.num_accelerators = width * height
        self.name = f"torus {width} x {height}"

    @property
    def parts(self) -> Parts:
        n, board = self.num_accelerators, self.board
        on_boards = n // board**2 * 2 * board * (board - 1)
        crossing = 2 * n - on_boards
        return Parts(0, on_boards, crossing // 2, crossing - crossing // 2)

    @property
    def diameter(self) -> int:
        return self.width // 2 + self.height // 2

    @property
    def global_share(self) -> Fraction:
        """Of a ring of k, the distances from one place add up to floor(k^2 / 4), spread over its
        two directions.
        """
        n = self.num_accelerators
        busiest = max(Fraction(side**2 // 4 * (n // side), 2) for side in (self.width, self.height))
        return Fraction(n - 1, 4) / busiest

    @property
    def allreduce_share(self) -> Fraction:
        """Two edge-disjoint rings over all accelerators, both ways round, use all links."""
        return Fraction(1)

    def routes(self, source: int, target: int) -> Iterator[tuple[Fraction, Route]]:
        (from_x, from_y), (to_x, to_y) = (divmod(place, self.height) for place in (source, target))
        ways = product(_ways(from_x, to_x, self.width), _ways(from_y, to_y, self.height))
        for (x_share, xs), (y_share, ys) in ways:
            along_x = [*((x, from_y) for x in xs), *((to_x, y) for y in ys[1:])]
            along_y = [*((from_x, y) for y in ys), *((x, to_y) for x in xs[1:])]
            for places in (along_x, along_y):
                yield x_share * y_share / 2, tuple(x * self.height + y for x, y in places)


def _ways(start: int, stop: int, size: int) -> list[tuple[Fraction, list[int]]]:
    """The shortest ways round a ring, with their shares."""
    there, back = (stop - start) % size, (start - stop) % size
    forward = [(start + step) % size for step in range(there + 1)]
    backward = [(start - step) % size for step in range(back + 1)]
    if there == back:
        return (
            [(Fraction(1, 2), forward), (Fraction(1, 2), backward)]
            if there
            else [(Fraction(1), forward)]
        )
    return [(Fraction(1), forward if there < back else backward)]
