"""A folded Clos network of two or three levels of switches, tapered above the first."""

from collections.abc import Iterator
from fractions import Fraction

from dist_ml.networks.network import Network, Parts, Route, require


class FatTree(Network):
    """`num_accelerators` below switches of `radix` ports; `taper`: how many links come up to a
    first switch for each that leaves it upwards (1: full bandwidth).

    Traffic is spread evenly over the switches at the top. Two levels serve radix^2 / 2
    accelerators, three radix^3 / 4.
    """

    num_links = 1

    def __init__(self, num_accelerators: int, radix: int = 64, taper: int = 1) -> None:
        self.num_levels = 2 if num_accelerators <= radix**2 // 2 else 3
        require(
            1 < num_accelerators <= radix**3 // 4,
            f"a fat tree of {num_accelerators} accelerators on switches of radix {radix}",
            f"three levels serve 2 to {radix**3 // 4}",
        )
        below = radix * taper // (taper + 1)
        require(
            taper >= 1 and num_accelerators % below == 0 and below % taper == 0,
            f"{num_accelerators} accelerators, {below} below a switch that is tapered {taper}:1",
            f"use a multiple of {below}, and a radix that is a multiple of {taper + 1}",
        )
        self.num_accelerators, self.radix, self.taper, self.below = (
            num_accelerators, radix, taper, below,
        )  # fmt: skip
        self.name = f"fat tree of {num_accelerators}" + (f", {taper}:1" if taper > 1 else "")

    @property
    def parts(self) -> Parts:
        n, up = self.num_accelerators, self.num_accelerators // self.taper
        levels_above = self.num_levels - 1
        return Parts(n + 2 * up * levels_above, 0, n, up * levels_above)

    @property
    def diameter(self) -> int:
        return 2 * self.num_levels

    @property
    def global_share(self) -> Fraction:
        """A switch's links upwards carry what its accelerators send to those of others."""
        n = self.num_accelerators
        upward = Fraction(self.taper * (n - self.below))
        return min(Fraction(1), Fraction(n - 1) / upward) if upward else Fraction(1)

    @property
    def allreduce_share(self) -> Fraction:
        """A ring that goes through each switch's accelerators in turn leaves it once."""
        return Fraction(1)

    def routes(self, source: int, target: int) -> Iterator[tuple[Fraction, Route]]:
        """Of two levels."""
        assert self.num_levels == 2, "routes are those of two levels"
        one, other = (("leaf", place // self.below) for place in (source, target))
        if one == other:
            yield Fraction(1), (source, one, target)
            return
        tops = self.below // self.taper
        for top in range(tops):
            yield Fraction(1, tops), (source, one, ("top", top), other, target)
