"""What a report says of runs: figures, configurations, traffic, pipelines, where they ran."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_ml.cli import comparison
from dist_ml.cli.comparison import Row, spell
from dist_ml.cli.document.parts import Bullets, Folded, Paragraph, Part, Picture, Section
from dist_ml.cli.document.predicted import predicted_parts
from dist_ml.cli.step_phases import numbers, step_phases
from dist_ml.errors import DataError
from dist_ml.experiment.markdown_table import Table
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.timeline_file import MeasuredStep
from dist_ml.train.run_folder import RunFolder

_TOTALS = {"messages": "messages", "words_sent": "words", "bytes_sent": "bytes"}
_MOST_SCHEDULES = 12  # a picture each, of a box an action


def run_sections(rows: list[Row], plots: Any) -> list[Section]:
    """Those that there is something for. `plots`: cli/plots.py, None without matplotlib."""
    figures = {} if plots is None else plots.figures(rows)
    captions = {"loss": "Loss over steps", "step_time": "Milliseconds of a step by phase"}
    pictures = {name: Picture(name, captions[name], each) for name, each in figures.items()}
    sections = [
        Section("Runs", list(_runs(rows))),
        Section("Configuration", list(_configuration(rows))),
        Section("Loss", [pictures[name] for name in ("loss",) if name in pictures]),
        Section("Time of a step", list(_times(rows, pictures.get("step_time")))),
        Section("Traffic of rank 0", list(_traffic(rows))),
        Section("Predicted and measured", list(predicted_parts(rows))),
        Section("Pipeline schedules", list(_schedules(rows, plots is not None))),
        Section("Where they ran", list(_machines(rows))),
    ]
    return [section for section in sections if section.parts]


def _runs(rows: list[Row]) -> Iterator[Part]:
    differing = {key for row in rows for key in row.differing}
    columns = [column for column in comparison.columns(rows) if column[0] not in differing]
    names = [name for name, _ in columns]
    cells = [[row.cell(name) for name in names] for row in rows]
    yield Table(names, cells, [numeric for _, numeric in columns])
    problems = [f"{row.name}: {row.run.status}: {row.run.problem}" for row in rows
                if row.run.problem]  # fmt: skip
    if problems:
        yield Bullets(problems)


def _configuration(rows: Sequence[Row]) -> Iterator[Part]:
    """A column a run for keys that differ; what all share is folded away."""
    known = [row for row in rows if row.run.config]
    differing = list(dict.fromkeys(key for row in known for key in row.differing))
    if differing:
        cells = [[key, *(row.cell(key) for row in known)] for key in differing]
        headers = ["differs in", *(row.name for row in known)]
        yield Table(headers, cells, [False] * len(headers))
    shared = comparison.shared(known)
    if shared:
        title = (
            f"{len(shared)} keys that are the same in all runs" if len(known) > 1 else "all keys"
        )
        cells = [[key, spell(value)] for key, value in shared.items()]
        yield Folded(title, Table(["key", "value"], cells, [False, False]))


def _times(rows: Sequence[Row], picture: Picture | None) -> Iterator[Part]:
    if picture is not None:
        yield picture
    phases = {row.name: found for row in rows if (found := step_phases(row.run))}
    names = list(dict.fromkeys(name for found in phases.values() for name in found))
    if names:
        cells = [
            [run, f"{1e3 * sum(found.values()):.3g}",
             *(f"{1e3 * found[name]:.3g}" if name in found else "-" for name in names)]
            for run, found in phases.items()
        ]  # fmt: skip
        headers = ["run", "ms a step", *names]
        yield Table(headers, cells, [False] + [True] * (len(headers) - 1))


def _traffic(rows: Sequence[Row]) -> Iterator[Part]:
    """Words a step along each axis, as planned from sizes and as counted; then totals."""
    cells = []
    for row in rows:
        planned = numbers(row.run.summary.get("planned_words_by_axis"))
        counted = numbers(row.run.summary.get("words_by_axis"))
        for axis in dict.fromkeys([*planned, *counted]):
            plan, count = planned.get(axis), counted.get(axis)
            off = f"{count / plan - 1:+.2%}" if plan and count is not None else "-"
            cells.append([row.name, axis, _whole(plan), _whole(count), off])
    if cells:
        headers = ["run", "axis", "planned words a step", "counted words a step", "off the plan"]
        yield Table(headers, cells, [False, False, True, True, True])
    totals = [(row.name, numbers(row.run.summary)) for row in rows]
    cells = [
        [name, *(_whole(found.get(key)) for key in _TOTALS)]
        for name, found in totals
        if found.keys() & _TOTALS.keys()
    ]
    if cells:
        yield Paragraph("Sent in the whole run:")
        yield Table(["run", *_TOTALS.values()], cells, [False, True, True, True])


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _schedules(rows: Sequence[Row], drawn: bool) -> Iterator[Part]:
    """Of each run that left its last step: the planned schedule above the measured one."""
    files = [(row.name, RunFolder(row.run.folder).timeline) for row in rows]
    files = [(name, file) for name, file in files if file.exists()]
    if len(files) > _MOST_SCHEDULES:
        yield Paragraph(f"The first {_MOST_SCHEDULES} of {len(files)} runs with a pipeline:")
    for number, (name, file) in enumerate(files[:_MOST_SCHEDULES], 1):
        yield from _schedule(number, name, file, drawn)


def _schedule(number: int, run: str, file: Path, drawn: bool) -> Iterator[Part]:
    try:
        measured = timeline_file.read(file)
        planned = measured.planned()
    except DataError as error:
        yield Paragraph(f"{run}: {error}")
        return
    yield Paragraph(
        f"{run}: {measured.schedule.name}, the last step. Planned from the mean time of each "
        f"action: {1e3 * planned.makespan:.3g} ms, bubble {planned.bubble:.1%}. Measured: "
        f"{1e3 * measured.timeline.makespan:.3g} ms, bubble {measured.timeline.bubble:.1%}."
    )
    if drawn:
        yield Picture(f"schedule_{number}", f"Schedule of {run}", _drawn(measured))


def _drawn(measured: MeasuredStep) -> Any:
    from dist_ml.bench import timeline_plot

    timelines = {"planned": measured.planned(), "measured": measured.timeline}
    return timeline_plot.figure(timelines, "seconds")


def _machines(rows: Sequence[Row]) -> Iterator[Part]:
    """What is known of each run's machine and versions."""
    found = [(row.name, row.run.summary.get("environment")) for row in rows]
    known = [(name, each) for name, each in found if isinstance(each, dict) and each]
    keys = list(dict.fromkeys(key for _, each in known for key in each))
    if keys:
        cells = [[name, *(spell(each.get(key)) for key in keys)] for name, each in known]
        yield Table(["run", *keys], cells, [False] * (len(keys) + 1))
