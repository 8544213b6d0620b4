"""Tables that keep every figure whole: where columns don't fit, a record takes several lines."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_INDENT = "  "


def print_table(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    gap: int = 2,
    shortest_first: int | None = None,
) -> None:
    """One line a row where `console` is wide enough; else the first cell, and below it `header
    value` pairs, as many to a line as fit.

    The first column may be cut to `shortest_first` characters before that; no other ever is.
    """
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    others = sum(widths[1:]) + gap * (len(widths) - 1)
    least = widths[0] if shortest_first is None else min(widths[0], shortest_first)
    if least + others > console.width:
        for line in folded(headers, rows, console.width):
            console.print(line, soft_wrap=True, markup=False)
        return
    widths[0] = min(widths[0], console.width - others)
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for header, width, is_number in zip(headers, widths, numeric, strict=True):
        grid.add_column(
            header,
            justify="right" if is_number else "left",
            width=width,
            overflow="ellipsis",
            no_wrap=True,
        )
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def folded(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Each row as its first cell and indented `header value` pairs; a pair is never broken."""
    lines: list[str] = []
    for row in rows:
        under = pairs(list(zip(headers[1:], row[1:], strict=True)), width - len(_INDENT))
        lines += [row[0], *(_INDENT + line for line in under)]
    return lines


def pairs(named: Sequence[tuple[str, str]], width: int) -> list[str]:
    """`name value` pairs, as many to a line as fit."""
    lines: list[str] = []
    for name, value in named:
        pair = f"{name} {value}"
        if lines and len(lines[-1]) + len(_INDENT) + len(pair) <= width:
            lines[-1] += _INDENT + pair
        else:
            lines.append(pair)
    return lines
