"""Tables at any width: no figure is ever cut."""

import io

import pytest
from rich.console import Console

from dist_ml.cli.tables import folded, print_table

HEADERS = ["run", "ranks", "accuracy", "samples/s"]
ROWS = [["1_ranks=1,optimizer.lr=0.1", "1", "97.22%", "123,456"], ["2_x", "16", "8.10%", "1.5"]]
NUMERIC = [False, True, True, True]


def printed(width: int, shortest_first: int | None = None) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False)
    print_table(console, HEADERS, ROWS, NUMERIC, shortest_first=shortest_first)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [12, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("shortest_first", [None, 6])
def test_every_figure_is_whole(width: int, shortest_first: int | None) -> None:
    lines = printed(width, shortest_first)
    words = " ".join(lines).split()
    for row in ROWS:
        assert set(row[1:]) <= set(words)
    if shortest_first is None:
        assert {row[0] for row in ROWS} <= set(words)


def test_a_wide_table_has_a_line_a_row() -> None:
    lines = printed(80)
    assert [line.split() for line in lines] == [HEADERS, *ROWS]
    assert len({len(line) for line in lines}) == 1  # the last column is right-justified


def test_the_first_column_gives_way() -> None:
    lines = printed(40, shortest_first=6)
    assert len(lines) == 3
    assert lines[1].startswith("1_rank")
    assert "…" in lines[1].split()[0]
    assert max(map(len, lines)) <= 40


def test_folded_pairs_are_never_broken() -> None:
    assert folded(HEADERS, ROWS[1:], width=28) == [
        "2_x",
        "  ranks 16  accuracy 8.10%",
        "  samples/s 1.5",
    ]
    assert folded(HEADERS, ROWS[1:], width=10) == [
        "2_x",
        "  ranks 16",
        "  accuracy 8.10%",
        "  samples/s 1.5",
    ]
