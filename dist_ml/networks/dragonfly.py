"""Dragonfly: groups of routers that are all joined, and one link between any two groups."""

from collections.abc import Iterator
from fractions import Fraction

from dist_ml.networks.network import Network, Node, Parts, Route, require


class Dragonfly(Network):
    """Groups of `routers`, each with `terminals` accelerators and `global_links` to other groups,
    as many groups as these can join: routers x global_links + 1. Balanced: routers = 2 terminals =
    2 global_links. Traffic takes the shortest way.

    Source: Kim, Dally, Scott, Abts, "Technology-driven, highly-scalable dragonfly topology", ISCA
    2008.
    """

    num_links = 1

    def __init__(self, terminals: int, routers: int, global_links: int) -> None:
        require(
            min(terminals, routers, global_links) >= 1,
            f"a dragonfly of {terminals}, {routers}, {global_links}",
            "terminals, routers and global links are at least 1",
        )
        self.terminals, self.routers, self.global_links = terminals, routers, global_links
        self.num_groups = routers * global_links + 1
        self.num_accelerators = terminals * routers * self.num_groups
        self.name = f"dragonfly {terminals}, {routers}, {global_links}"

    @property
    def parts(self) -> Parts:
        a, groups, n = self.routers, self.num_groups, self.num_accelerators
        inside, between = groups * a * (a - 1) // 2, groups * (groups - 1) // 2
        return Parts(n + 2 * (inside + between), 0, n + inside, between)

    @property
    def diameter(self) -> int:
        """In, to the router with the right link, across, to the right router, and out."""
        return 5

    @property
    def global_share(self) -> Fraction:
        p, a, h = self.terminals, self.routers, self.global_links
        across = (a * p) ** 2  # a link between groups
        within = p * p * (1 + 2 * a * h) if a > 1 else 0  # own traffic, and both ends of the others
        return min(Fraction(1), Fraction(self.num_accelerators - 1, max(across, within)))

    @property
    def allreduce_share(self) -> Fraction:
        """A ring that goes through each router's, then each group's accelerators."""
        return Fraction(1)

    def routes(self, source: int, target: int) -> Iterator[tuple[Fraction, Route]]:
        (own, one), (away, other) = (self._router(place) for place in (source, target))
        route: list[Node] = [source, (own, one)]
        if own != away:
            route += [(own, self._gate(own, away)), (away, self._gate(away, own))]
        route += [(away, other), target]
        yield (
            Fraction(1),
            tuple(
                node for index, node in enumerate(route) if index == 0 or node != route[index - 1]
            ),
        )

    def _router(self, accelerator: int) -> tuple[int, int]:
        return divmod(accelerator // self.terminals, self.routers)

    def _gate(self, group: int, to: int) -> int:
        """The router of `group` that has the link to another one."""
        return ((to - group) % self.num_groups - 1) // self.global_links
