"""What was predicted of runs, beside what was measured in them."""

from collections.abc import Iterator, Sequence
from typing import Any

from dist_ml.cli.comparison import Row
from dist_ml.cli.document.parts import Bullets, Part
from dist_ml.cli.step_phases import numbers
from dist_ml.experiment.markdown_table import Table

# Of a quantity's unit: what it is shown in, and how many of these are one of it.
_SHOWN = {"s": ("ms", 1e3), "bytes": ("MB", 1e-6)}


def predicted_parts(rows: Sequence[Row]) -> Iterator[Part]:
    """A line for each quantity of each run that has any, and why others have none."""
    cells = []
    for row in rows:
        found = row.run.summary.get("predicted")
        for each in found if isinstance(found, list) else ():
            cells += [[row.name, *line] for line in _line(each)]
    if cells:
        headers = ["run", "quantity", "predicted", "measured", "off", "likely reason"]
        yield Table(headers, cells, [False, False, True, True, True, False])
    reasons = [
        f"{row.name}: not predicted: {row.run.summary['not_predicted']}"
        for row in rows
        if row.run.summary.get("not_predicted")
    ]
    if reasons:
        yield Bullets(reasons)


def _line(quantity: Any) -> Iterator[list[str]]:
    """Nothing where the summary holds something else."""
    if not isinstance(quantity, dict):
        return
    values = numbers({name: quantity.get(name) for name in ("predicted", "measured")})
    if len(values) < 2:
        return
    name = str(quantity.get("unit", ""))
    unit, scale = _SHOWN.get(name, (name, 1.0))
    planned, found = (scale * value for value in values.values())
    off = f"{found / planned - 1:+.1%}" if planned else "-"
    text = f"{quantity.get('name')}, {unit}"
    yield [text, f"{planned:,.4g}", f"{found:,.4g}", off, str(quantity.get("why") or "")]
