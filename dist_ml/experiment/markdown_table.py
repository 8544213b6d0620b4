"""Tables of text, and how Markdown writes them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_MEANS_SOMETHING = re.compile(r"([\\`*<\[|])")  # to Markdown, in running text


class Table(NamedTuple):
    """Cells as text, a header for each, and which columns hold numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]


def markdown_table(table: Table) -> str:
    """The table with columns of one width, so that it can be read as it stands."""
    headers, *rows = [[escaped(cell) for cell in row] for row in (table.headers, *table.rows)]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, table.numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + (":" if number else "-")
        for width, number in zip(widths, table.numeric, strict=True)
    ]
    return "\n".join([line(headers), f"| {' | '.join(rule)} |", *map(line, rows)])


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MEANS_SOMETHING.sub(r"\\\1", " ".join(printable(text).split()))


def printable(text: str) -> str:
    """The text with a mark in the place of what can't be shown or written: control characters, and
    bytes of file names that are no characters.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
