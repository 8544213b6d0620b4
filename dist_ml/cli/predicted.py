"""Runs side by side: how far what was measured is from what was predicted."""

from collections.abc import Sequence

from rich.console import Console

from dist_ml.cli.comparison import Row
from dist_ml.cli.tables import print_table
from dist_ml.train.display.predicted import apart, quantities, reasons


def print_predicted(console: Console, rows: Sequence[Row], gap: int, shortest_name: int) -> None:
    """A line a run that was predicted, and the likely reasons below; nothing where none was."""
    found = [(row.name, quantities(row.run.summary)) for row in rows]
    predicted = [(name, values) for name, values in found if values]
    if not predicted:
        return
    columns = list(dict.fromkeys(value["name"] for _, values in predicted for value in values))
    cells = []
    for name, values in predicted:
        named = {value["name"]: apart(value) for value in values}
        cells.append([name, *(named.get(column, "-") for column in columns)])
    console.print("\nmeasured beside predicted:")
    numeric = [False, *(True for _ in columns)]
    print_table(console, ["run", *columns], cells, numeric, gap, shortest_name)
    for name, values in predicted:
        for why, names in reasons(values).items():
            words = f"{', '.join(names)}, likely reason: {why}"
            console.print(f"{name}: {words}", soft_wrap=True)
