"""Words of layers that ranks share: the closed forms, the ledger of a pass, and the
textbooks' formulas."""

from itertools import pairwise

import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.operator import OperatorConfig
from dist_ml.models import MLP, Samples
from dist_ml.operator_parallel.grid import OperatorGrid, Sides
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import LAYOUTS, all_sides
from dist_ml.operator_parallel.words import Layer, LayerWords, fewest_words, model_words
from dist_ml.train.operator_axis import choose_layout
from tests.unit.train_worlds import changed

WIDTHS = (10, 13, 6, 9)


def layers(widths: tuple[int, ...]) -> list[Layer]:
    return [Layer(f"layers.{i}", *pair) for i, pair in enumerate(pairwise(widths))]


def seen(comm: Communicator, layout: str, sides: Sides, num_rows: int) -> LayerWords:
    """What one rank's ledger holds after a forward and a backward pass."""
    factory = ParallelLayers(OperatorGrid(comm, sides), layout, {}, "torch")
    model = MLP(WIDTHS, "tanh", dtype=torch.float64, layers=factory)
    comm.traffic.reset()
    outputs = model(torch.randn(num_rows, WIDTHS[0], dtype=torch.float64))
    forward = comm.traffic.total().words_sent
    outputs.sum().backward()
    return LayerWords(forward, comm.traffic.total().words_sent - forward)


@pytest.mark.parametrize(
    ("num_ranks", "num_rows"), [(1, 7), (2, 7), (3, 1), (3, 7), (4, 1), (6, 7)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_closed_form_is_what_the_ledger_holds(
    layout: str, num_ranks: int, num_rows: int
) -> None:
    """On every grid and rank, for sizes that don't divide."""
    for sides in all_sides(layout, num_ranks):
        ledgers = run_ranks(num_ranks, lambda comm, s=sides: seen(comm, layout, s, num_rows))
        for rank, ledger in enumerate(ledgers):
            planned = model_words(layout, sides, layers(WIDTHS), num_rows, rank)
            forward, backward = (sum(words) for words in zip(*planned, strict=True))
            assert (forward, backward) == ledger, (sides, rank)


B, M, N = 96, 48, 24


@pytest.mark.parametrize(
    ("layout", "sides", "forward", "backward"),
    [
        # two layers, M -> N -> M, of which the inputs' gradient of the first is wanted, too
        ("1d", Sides(first=4), 2 * 3 / 4 * B * M, 2 * 3 / 4 * B * M),
        ("1d_sharded", Sides(first=4), 2 * 3 / 4 * B * M, 2 * 3 / 4 * B * M),
        (
            "2d",
            Sides(rows=2, first=2),
            (B * M + M * N) / 4 + (M * N + B * M) / 4,
            # the second layer's X and dX needn't move: less than three SUMMA products would
            2 * (B * M + M * N) / 4 + (B * M + 2 * M * N) / 4,
        ),
        (
            "3d",
            Sides(rows=2, first=2, second=2),
            (B * M + M * N + B * N) / 8 + (B * N + M * N + B * M) / 8,
            (B * M + M * N + B * N) / 8 + (B * N + M * N + B * M) / 8,
        ),
    ],
)
def test_where_sizes_divide_it_is_the_textbooks(
    layout: str, sides: Sides, forward: float, backward: float
) -> None:
    """The bias's allreduce left out."""
    planned = model_words(layout, sides, layers((M, N, M)), B, first_gradient=True, bias=False)
    assert sum(words.forward for words in planned) == forward
    assert sum(words.backward for words in planned) == backward


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_cut_boundary_moves_what_a_whole_one_does(num_ranks: int) -> None:
    """Of data nothing moves, and nothing is made whole at the end."""

    def words(layout: str) -> int:
        chain, sides = layers((N, M, N, M, N)), Sides(first=num_ranks)
        return sum(map(sum, model_words(layout, sides, chain, B, bias=False)))

    assert words("1d_sharded") == words("1d") > 0


def test_two_dimensions_beat_one_from_the_batch_on_that_they_should() -> None:
    """Pairs of square layers of m on P = 4 ranks: from b = 6 m / (4 sqrt(P) - 1) = 0.86 m on."""
    square, grid = layers((70, 70, 70)), Sides(rows=2, first=2)

    def words(layout: str, sides: Sides, num_rows: int) -> int:
        planned = model_words(layout, sides, square, num_rows, first_gradient=True, bias=False)
        return sum(map(sum, planned))

    assert words("1d", Sides(first=4), 58) < words("2d", grid, 58)
    assert words("1d", Sides(first=4), 62) > words("2d", grid, 62)


def test_the_fewest_words_are_found_among_all_grids() -> None:
    """A wide batch has its rows cut, a narrow one its layers."""
    square = layers((64,) * 5)
    name, sides = fewest_words(square, 4096, 4)
    assert (LAYOUTS[name].replicated, sides.first) == (False, 1)
    _, sides = fewest_words(square, 4, 4)
    assert (sides.copies, sides.rows) == (1, 1)


def test_a_row_may_be_many_vectors() -> None:
    """The tokens of a sample count as so many rows, but stay on one rank."""
    square, grid = layers((64, 64, 64)), Sides(rows=2, first=2)
    tokens = model_words("2d", grid, square, 8, row_items=32)
    assert tokens == model_words("2d", grid, square, 8 * 32)
    assert fewest_words(square, 8, 4, row_items=32) == fewest_words(square, 8 * 32, 4)
    assert fewest_words(square, 8, 4, row_items=32) != fewest_words(square, 8, 4)


@pytest.mark.parametrize(("num_tokens", "cuts_rows"), [(2, False), (400, True)])
def test_auto_counts_the_tokens_of_a_text(num_tokens: int, cuts_rows: bool) -> None:
    data = DataConfig("text", num_tokens=num_tokens, test_fraction=0.1, num_train=4, num_test=4)
    config = changed(
        model=ModelConfig("transformer", width=32, depth=1, heads=4),
        data=data,
        batch_size=4,
        operator_parallel=OperatorConfig("auto"),
    )
    samples = Samples((num_tokens,), 256, "next_token")
    name, _ = choose_layout(config, {"data": 1, "pipeline": 1, "operator": 4}, samples, 4)
    assert LAYOUTS[name].replicated != cuts_rows
