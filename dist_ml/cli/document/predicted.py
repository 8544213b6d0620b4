"""What was predicted of runs, beside what was measured in them."""

from collections.abc import Iterator, Sequence

from dist_ml.cli.comparison import Row
from dist_ml.cli.document.parts import Bullets, Part
from dist_ml.experiment.markdown_table import Table
from dist_ml.train.display.predicted import apart, quantities, spell


def predicted_parts(rows: Sequence[Row]) -> Iterator[Part]:
    """A line for each quantity of each run that has any, and why others have none."""
    cells = [
        [
            row.name,
            each["name"],
            *(spell(each[which], each["unit"]) for which in ("predicted", "measured")),
            apart(each),
            each["why"],
        ]
        for row in rows
        for each in quantities(row.run.summary)
    ]
    if cells:
        headers = ["run", "quantity", "predicted", "measured", "apart", "likely reason"]
        yield Table(headers, cells, [False, False, True, True, True, False])
    reasons = [
        f"{row.name}: not predicted: {row.run.summary['not_predicted']}"
        for row in rows
        if row.run.summary.get("not_predicted")
    ]
    if reasons:
        yield Bullets(reasons)
