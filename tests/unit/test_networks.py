"""Networks: closed forms against what every link carries, sizes against those published."""

from fractions import Fraction
from itertools import pairwise
from math import isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.errors import ConfigError
from dist_ml.measure.cost_model import Link
from dist_ml.networks.collectives import in_network, ring, rows_and_columns
from dist_ml.networks.dragonfly import Dragonfly
from dist_ml.networks.fat_tree import FatTree
from dist_ml.networks.hamming_mesh import HammingMesh
from dist_ml.networks.network import Network, counted_global_share, loads
from dist_ml.networks.placement import Boards, Placed, filled
from dist_ml.networks.torus import Torus
from dist_ml.networks.volumes import GPT3, Split, volumes

SMALL: list[Network] = [
    Torus(4, 4), Torus(8, 8, board=2), Torus(5, 5), Torus(6, 4),
    HammingMesh(1, 1, 8, 8), HammingMesh(2, 2, 4, 4), HammingMesh(4, 4, 2, 2),
    HammingMesh(3, 2, 3, 4), HammingMesh(5, 5, 2, 2),
    FatTree(32, radix=8), FatTree(24, radix=12, taper=2), FatTree(6, radix=12),
    Dragonfly(2, 4, 2), Dragonfly(1, 2, 1), Dragonfly(3, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)
def test_the_busiest_link_is_the_one_of_the_closed_form(network: Network) -> None:
    assert network.global_share == counted_global_share(network)


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)
def test_routes_carry_everything_within_the_diameter(network: Network) -> None:
    n, longest = network.num_accelerators, 0
    for target in range(1, n):
        routes = list(network.routes(0, target))
        assert sum(share for share, _ in routes) == 1
        for _, route in routes:
            assert (route[0], route[-1]) == (0, target)
            assert all(here != there for here, there in pairwise(route))
            longest = max(longest, len(route) - 1)
    assert longest <= network.diameter


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)
def test_no_accelerator_has_more_links_than_it_is_said_to(network: Network) -> None:
    used: dict[object, set[object]] = {}
    for source, target in loads(network):
        if isinstance(source, int):
            used.setdefault(source, set()).add(target)
    assert max(map(len, used.values())) <= network.num_links


@pytest.mark.parametrize(
    ("network", "limit"),
    [
        (HammingMesh(2, 2, 64, 64), Fraction(1, 4)),  # 1 / (2 a) of many boards
        (HammingMesh(4, 4, 32, 32), Fraction(1, 8)),
        (Torus(128, 128, board=2), Fraction(2, 128)),  # 2 / sqrt(N)
        (FatTree(16_384, 64), Fraction(1)),
        (FatTree(16_128, 64, taper=3), Fraction(1, 3)),
    ],
    ids=["Hx2", "Hx4", "torus", "fat tree", "tapered"],
)
def test_global_shares_of_large_networks(network: Network, limit: Fraction) -> None:
    assert isclose(network.global_share, limit, rel_tol=0.04)


def test_ports_of_switches_an_accelerator() -> None:
    """2 (a + b) / (a b) a plane: 2 and 1; a non-blocking fat tree takes 3 a link on two levels."""
    for side, expected in ((2, 2), (4, 1)):
        mesh = HammingMesh(side, side, 8, 8)
        assert Fraction(mesh.parts.switch_ports, mesh.num_accelerators) == expected
    assert FatTree(1024, 64).parts.switch_ports == 3 * 1024
    assert FatTree(16_384, 64).parts.switch_ports == 5 * 16_384
    assert Torus(8, 8).parts.switch_ports == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Torus(2, 8),
        lambda: Torus(6, 6, board=4),
        lambda: HammingMesh(2, 2, 1, 4),
        lambda: FatTree(100, 64),
        lambda: FatTree(1 << 20, 64),
        lambda: Dragonfly(0, 2, 1),
    ],
)
def test_sizes_that_cannot_be_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match=";"):
        make()  # type: ignore[operator]


def test_allreduces_come_to_their_bounds() -> None:
    link = Link(1e-6, 50e9)
    tree, mesh, torus = FatTree(1024, 64), HammingMesh(2, 2, 16, 16), Torus(32, 32)
    large = 1e9
    bound = 2 * 1023 / 1024 * large / link.bytes_per_second
    assert isclose(ring(tree, link, large), bound, rel_tol=0.06)
    assert isclose(ring(mesh, link, large), ring(torus, link, large))
    assert isclose(ring(mesh, link, large) / bound, 1 / 4, rel_tol=0.3)  # all four links
    # switches that reduce halve what a host sends
    assert isclose(in_network(tree, link, large) / bound, 1 / 2, rel_tol=0.01)
    # short messages: a ring's latency grows with N, that of rows and columns with its root
    assert rows_and_columns(mesh, link, 1e3) < ring(mesh, link, 1e3) / 10
    assert rows_and_columns(mesh, link, large) > ring(mesh, link, large)


def test_volumes_of_gpt3() -> None:
    """12 x 8 x 8 ranks, 128 micro-batches of one sample, two bytes a word."""
    assert isclose(GPT3.num_parameters, 174e9, rel_tol=0.01)
    gigabytes = [2e-9 * words for words in volumes(GPT3, Split(12, 8, 8, 128))]
    assert [round(each, 1) for each in gigabytes] == [10.0, 1.6, 541.2]


class TestPlacement:
    def test_rows_and_columns_need_not_be_neighbours(self) -> None:
        boards = Boards(4, 4, failed=[(1, 1), (2, 3)])
        placed = boards.place(3, 3)
        assert placed is not None
        crossings = {(row, column) for row in placed.rows for column in placed.columns}
        assert len(crossings) == 9
        assert not crossings & {(1, 1), (2, 3)}
        assert isclose(boards.utilisation, 9 / 14)

    def test_a_failed_board_takes_one_crossing(self) -> None:
        assert Boards(4, 4, failed=[(0, 0)]).place(4, 4, reshape=False) is None
        assert Boards(4, 4, failed=[(0, 0)]).place(3, 4, reshape=False) is not None

    def test_a_job_is_turned_and_reshaped(self) -> None:
        boards = Boards(2, 8)
        assert boards.place(8, 1, reshape=False) is not None
        assert boards.place(4, 2) == Placed((1,), tuple(range(8)))

    @given(st.integers(0, 2**32 - 1))
    def test_no_board_is_given_twice(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        failed = [(int(r), int(c)) for r, c in random.integers(0, 8, (5, 2))]
        boards = Boards(8, 8, failed)
        jobs = [(int(u), int(v)) for u, v in random.integers(1, 5, (12, 2))]
        given_away: set[tuple[int, int]] = set(failed)
        for placed in filter(None, filled(boards, jobs)):
            own = {(row, column) for row in placed.rows for column in placed.columns}
            assert not own & given_away
            given_away |= own
        assert boards.free.sum() == 64 - len(given_away)

    def test_what_is_released_is_free(self) -> None:
        boards = Boards(4, 4)
        placed = boards.place(4, 4)
        assert placed is not None
        assert boards.place(1, 1) is None
        boards.release(placed)
        assert boards.utilisation == 0
