"""What a report says of scaling experiments: the points, the laws, the pictures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_ml.cli.document.parts import Bullets, Paragraph, Part, Picture, Section
from dist_ml.errors import DataError
from dist_ml.experiment import tables
from dist_ml.experiment.report import Report

_FILE = "report.json"


def find(folders: Sequence[Path]) -> list[Path]:
    """The experiments at or below these that have come to a report."""
    files = {
        file.parent.resolve(): file.parent
        for folder in folders
        for file in sorted(folder.rglob(_FILE))
        if file.with_name("experiment.yaml").exists()
    }
    return list(files.values())


def experiment_section(folder: Path, number: int, plots: Any) -> Section:
    """Of the experiment in `folder`, the `number`th of the document, or why it can't be read.
    `plots`: experiment/plots.py, None without matplotlib.
    """
    try:
        report = _read(folder / _FILE)
        name = report["experiment"]["name"]
        return Section(f"Experiment {name}", list(_parts(report, number, plots)))
    except DataError as error:
        problem = str(error)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = (
            f"{folder / _FILE} holds no report of an experiment ({type(error).__name__}: {error}); "
            "the same dist-ml experiment again writes it"
        )
    return Section(f"Experiment in {folder}", [Paragraph(problem)])


def _parts(report: Report, number: int, plots: Any) -> Iterator[Part]:
    yield Paragraph(tables.what_ran(report["experiment"]))
    if report["notes"]:
        yield Bullets(report["notes"])
    yield tables.points_table(report)
    yield Paragraph(tables.LEGEND)
    figures = {} if plots is None else plots.figures(report)
    for name, figure in figures.items():
        caption = name.replace("_", " ")
        yield Picture(f"experiment_{number}_{name}", caption, figure)
    fits = tables.fits_table(report)
    if fits.rows:
        yield fits
    for line in tables.conclusions(report):
        yield Paragraph(line)
    failed = tables.failures(report)
    if failed:
        yield Bullets([f"Failed: {line}" for line in failed])


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} can't be read ({error}); remove it") from error
