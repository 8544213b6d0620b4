"""What every network is: who is joined to whom, which way traffic goes, and what share of the
injection bandwidth a pattern of traffic reaches.

Bandwidths are those of one plane, in units of a link's. Closed forms hold for any size; on small
instances `loads` counts what every link carries, and must come to the same.

Source of the measures and of HammingMesh: Hoefler et al., "HammingMesh: A Network Topology for
Large-Scale Deep Learning", SC 2022.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from dist_ml.errors import ConfigError

Node = Hashable  # an accelerator is its number; switches are tuples that begin with a word
Route = tuple[Node, ...]  # the nodes passed, both ends included


class Parts(NamedTuple):
    """What one plane of a network is built of, over all accelerators."""

    switch_ports: int  # in use
    board_links: int  # traces on a board
    short_cables: int  # within a rack or row: copper
    long_cables: int  # optical


class Network(ABC):
    """A topology of one size. `num_links`: of an accelerator to the network, all usable at once."""

    name: str
    num_accelerators: int
    num_links: int

    @property
    @abstractmethod
    def parts(self) -> Parts: ...

    @property
    @abstractmethod
    def diameter(self) -> int:
        """Links between two accelerators, at most, on the routes that are taken."""

    @property
    @abstractmethod
    def global_share(self) -> Fraction:
        """Of the injection bandwidth, what is reached where every accelerator sends as much to
        every other one: at most 1.
        """

    @property
    @abstractmethod
    def allreduce_share(self) -> Fraction:
        """Of the injection bandwidth, what a ring allreduce over all accelerators can use."""

    @abstractmethod
    def routes(self, source: int, target: int) -> Iterator[tuple[Fraction, Route]]:
        """The routes that traffic between two different accelerators takes, with their shares of
        it, which add up to 1.
        """


def loads(network: Network) -> dict[tuple[Node, Node], Fraction]:
    """What each directed link carries where every accelerator sends one unit to every other one.
    O(accelerators^2 x diameter): for small instances.
    """
    carried: dict[tuple[Node, Node], Fraction] = defaultdict(Fraction)
    for source in range(network.num_accelerators):
        for target in range(network.num_accelerators):
            if source == target:
                continue
            for share, route in network.routes(source, target):
                for link in pairwise(route):
                    carried[link] += share
    return dict(carried)


def counted_global_share(network: Network) -> Fraction:
    """`global_share`, from the load of the busiest link."""
    injected = Fraction(network.num_accelerators - 1, network.num_links)
    return min(Fraction(1), injected / max(loads(network).values()))


def require(ok: bool, what: str, remedy: str) -> None:
    """`ConfigError` for sizes that a topology can't have."""
    if not ok:
        raise ConfigError(f"{what}; {remedy}")
