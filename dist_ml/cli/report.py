"""`dist-ml report`: runs in a table, as JSON, and as plots."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_ml.cli import comparison, terminal
from dist_ml.cli.comparison import Row
from dist_ml.cli.terminal import Parser
from dist_ml.errors import MachineError
from dist_ml.train import stored_run

_DEFAULT = Path("runs")
_ROOMY = 110  # columns; below, a table is squeezed
_SHORTEST_NAME = 6
_PLAIN_WIDTH = 200  # of a table that doesn't go to a terminal: nothing should be cut off


def main(argv: Sequence[str]) -> int:
    """Table the given runs; 0 even when some of them failed, because the report didn't."""
    parser = Parser(
        prog="dist-ml report",
        description="Compare runs: accuracy, speed, communication, and what was configured "
        "differently.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[_DEFAULT],
        help="runs, or folders of runs (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="DIR",
        help="draw loss.png and step_time.png there (extra: plot)",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors that are the user's, too"
    )
    options = parser.parse_args(argv)
    found = {
        folder.resolve(): folder for path in options.folders for folder in stored_run.find(path)
    }
    runs = [stored_run.read(folder) for folder in found.values()]
    rows = comparison.compare(runs)
    terminal.say(
        json.dumps([row.as_json() for row in rows], indent=2) if options.json else table(rows)
    )
    if options.plot is not None:
        _plot(rows, options.plot, quiet=options.json)
    return 0


def table(rows: list[Row]) -> str:
    """The rows as text, as wide as the terminal; below it a line for each run that has a
    problem.
    """
    from rich.console import Console
    from rich.table import Table

    from dist_ml.train.display.terminal import on_terminal

    has_terminal = on_terminal(os.environ, sys.stdout)
    console = Console(
        force_terminal=has_terminal,
        width=None if has_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
    )
    gap = 2 if console.width >= _ROOMY else 1
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    columns = comparison.columns(rows)
    headers = [name if console.width >= _ROOMY else name.rpartition(".")[2] for name, _ in columns]
    cells = [[row.cell(name) for name, _ in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    # Where room is short the run's name is cut: its number comes first, and the other columns tell
    # runs apart too.
    widths[0] = max(
        _SHORTEST_NAME, min(widths[0], console.width - sum(widths[1:]) - gap * len(widths))
    )
    for header, width, (_, numeric) in zip(headers, widths, columns, strict=True):
        grid.add_column(
            header,
            justify="right" if numeric else "left",
            width=width,
            overflow="ellipsis",
            no_wrap=True,
        )
    for row in cells:
        grid.add_row(*row)
    with console.capture() as capture:
        console.print(grid)
        for entry in rows:
            if entry.run.problem:
                console.print(
                    f"{entry.name}: {entry.run.status}: {entry.run.problem}", soft_wrap=True
                )
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _plot(rows: list[Row], folder: Path, quiet: bool) -> None:
    try:
        from dist_ml.cli import plots
    except ImportError as error:
        raise MachineError(
            f"--plot needs matplotlib ({error}); run: pip install 'dist_ml[plot]'"
        ) from error
    for file in plots.draw(rows, folder):
        if not quiet:
            terminal.say(f"drawn: {file}")
