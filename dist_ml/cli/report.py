"""`dist-ml report`: runs in a table, as JSON, as plots, and as a document of all of it."""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_ml.cli import comparison, terminal
from dist_ml.cli.comparison import Row
from dist_ml.cli.terminal import Parser
from dist_ml.errors import MachineError
from dist_ml.launch.extras import install_command
from dist_ml.train import stored_run

_DEFAULT = Path("runs")
_ROOMY = 110  # columns; below, a table is squeezed
_SHORTEST_NAME = 6
_PLAIN_WIDTH = 200  # of a table that doesn't go to a terminal: nothing should be cut off


def main(argv: Sequence[str]) -> int:
    """Table the given runs; 0 even when some of them failed, because the report didn't."""
    options = _parser().parse_args(argv)
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
    if options.html is not None or options.markdown is not None:
        from dist_ml.cli.document import files

        for file in files.write(rows, options.folders, options.html, options.markdown):
            if not options.json:
                terminal.say(f"written: {file}")
    return 0


def table(rows: list[Row]) -> str:
    """The rows as text, as wide as the terminal; below it a line for each run that has a
    problem, and what was predicted.
    """
    from rich.console import Console

    from dist_ml.cli.predicted import print_predicted
    from dist_ml.cli.tables import print_table
    from dist_ml.train.display.terminal import on_terminal

    has_terminal = on_terminal(os.environ, sys.stdout)
    console = Console(
        file=io.StringIO(),  # capturing writes to the file too
        force_terminal=has_terminal,
        width=None if has_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
    )
    columns = comparison.columns(rows)
    roomy = console.width >= _ROOMY
    headers = [name if roomy else name.rpartition(".")[2] for name, _ in columns]
    cells = [[row.cell(name) for name, _ in columns] for row in rows]
    numeric = [is_number for _, is_number in columns]
    gap = 2 if roomy else 1
    with console.capture() as capture:
        # A run's name is cut first: its number leads it, and the other columns tell runs apart too.
        print_table(console, headers, cells, numeric, gap, _SHORTEST_NAME)
        for entry in rows:
            if entry.run.problem:
                console.print(
                    f"{entry.name}: {entry.run.status}: {entry.run.problem}", soft_wrap=True
                )
        print_predicted(console, rows, gap, _SHORTEST_NAME)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _plot(rows: list[Row], folder: Path, quiet: bool) -> None:
    try:
        from dist_ml.cli import plots
    except ImportError as error:
        raise MachineError(
            f"--plot needs matplotlib ({error}); run: {install_command('plot')}"
        ) from error
    for file in plots.draw(rows, folder):
        if not quiet:
            terminal.say(f"drawn: {file}")


def _parser() -> Parser:
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
        "--html",
        type=Path,
        metavar="FILE",
        help="write tables and plots as one page that needs nothing beside it, not even a network",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the same as Markdown, its plots beside it",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors that are the user's, too"
    )
    return parser
