"""A report's figures in tables, and report.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_ml.experiment.axes import spell
from dist_ml.experiment.markdown_table import Table, escaped, markdown_table
from dist_ml.experiment.report import Report
from dist_ml.measure.scaling import USL

_HEADERS = {
    "seconds": "seconds",
    "samples_per_second": "samples/s",
    "communication_share": "communication",
    "bubble": "bubble",
    "planned_bubble": "planned bubble",
    "words_sent": "words sent",
}
_FORMATS = {
    "seconds": "{:.2f}",
    "samples_per_second": "{:,.0f}",
    "communication_share": "{:.1%}",
    "bubble": "{:.1%}",
    "planned_bubble": "{:.1%}",
}
_SPEEDS = ("seconds", "samples_per_second")  # which speed-ups stand beside
_WHOLE = "{:,.0f}"  # of words
_NOTHING = "-"


def points_table(report: Report) -> Table:
    """A row a point: its settings, its ranks, what was measured, and what follows."""
    points = report["points"]
    settings = [key for key in dict.fromkeys(k for p in points for k in p["settings"])
                if key != "ranks"]  # fmt: skip
    measures = list(dict.fromkeys(name for point in points for name in point["measures"]))
    speeds, others = ([m for m in measures if (m in _SPEEDS) is first] for first in (True, False))
    derived = [name for name in ("speed_up", "efficiency", "relative")
               if any(point[name] is not None for point in points)]  # fmt: skip
    named = {"speed_up": "speed-up", "relative": "of the first"}
    headers = [*settings, "ranks", *(_header(name) for name in speeds),
               *(named.get(name, name) for name in derived),
               *(_header(name) for name in others), "runs"]  # fmt: skip
    rows = [
        [
            *(point["settings"].get(key, _NOTHING) for key in settings),
            str(point["ranks"]),
            *(_measure(point, name) for name in speeds),
            *(_derived(point, name) for name in derived),
            *(_measure(point, name) for name in others),
            _runs(point),
        ]
        for point in points
    ]
    return Table(headers, rows, [False] * len(settings) + [True] * (len(headers) - len(settings)))


def fits_table(report: Report) -> Table:
    """A row for each curve and law, the better law of a curve first."""
    headers = ("curve", "law", "samples/s of a rank", "sigma", "kappa", "residual", "corrected",
               "most ranks")  # fmt: skip
    rows = [
        [
            curve["title"] or "all points",
            fit["law"],
            f"{fit['rate']:,.0f}",
            f"{fit['sigma']:.4f}",
            f"{fit['kappa']:.2g}" if fit["law"] == USL else _NOTHING,
            f"{fit['residual']:.2%}",
            f"{fit['corrected_residual']:.2%}",
            _NOTHING if fit["most_ranks"] is None else f"{fit['most_ranks']:.0f}",
        ]
        for curve in report["curves"]
        for fit in curve["fits"]
    ]
    return Table(headers, rows, [False, False] + [True] * 6)


def conclusions(report: Report) -> list[str]:
    """What the fits say, a line for each curve over ranks; those of which the same is to be said
    share it.
    """
    said: dict[str, list[str]] = {}
    for curve in report["curves"]:
        if curve["base_ranks"] is not None or len(report["curves"]) == 1:
            said.setdefault(curve["conclusion"], []).append(curve["title"])
    return [
        f"{', '.join(titles)}: {text}" if len(report["curves"]) > 1 else text
        for text, titles in said.items()
    ]


def failures(report: Report) -> list[str]:
    """A line for each run that failed."""
    return [
        f"{each['point']}, repetition {each['repetition']}: {each['problem']}"
        for each in report["failures"]
    ]


def markdown(report: Report, plots: Sequence[str], without_plots: str) -> str:
    """report.md. `plots`: names of files beside it; `without_plots`: why there are none."""
    config = report["experiment"]
    failed = [f"- {escaped(line)}" for line in failures(report)]
    fits = fits_table(report)
    parts = [
        f"# {escaped(config['name'])}: {config['kind']} scaling",
        escaped(what_ran(config)),
        *_environment_lines(report),
        *map(escaped, report["notes"]),
        markdown_table(points_table(report)),
        LEGEND,
        "## Over ranks" if conclusions(report) else "",
        markdown_table(fits) if fits.rows else "",
        "\n\n".join(map(escaped, conclusions(report))),
        "## Failed" if failed else "",
        "\n".join(failed),
        "\n\n".join(f"![{name}]({name})" for name in plots) or without_plots,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


LEGEND = (
    "Medians over the finished runs, with the spread of their middle half (of all, where there are "
    "fewer than four) in brackets. Speed-up: samples/s over those of the fewest ranks of the same "
    "settings; efficiency: speed-up over the ratio of ranks, which in weak scaling is the rate "
    "that a rank keeps. Words are those that rank 0 sent: in all, and a step along a mesh axis."
)


def what_ran(config: Mapping[str, Any]) -> str:
    """Configuration, axes, place and settings in a sentence."""
    place = {
        "local": "on one machine",
        "emulated": f"on {config['network']['hosts']} emulated hosts, "
        f"{config['network']['rate'] or 'unshaped'} links",
        "slurm": "as Slurm jobs",
        "allocation": "in one Slurm job",
    }[config["where"]]
    varied = ", ".join(config["axes"])
    runs = f"{config['repetitions']} run{'s' if config['repetitions'] > 1 else ''} a point"
    fixed = " ".join(f"{key}={spell(value)}" for key, value in config["fixed"].items())
    a_rank = " ".join(f"{key}={value}" for key, value in config["per_rank"].items())
    return (
        f"{config['base']} with {varied} varied, {runs}, {place}"
        + (f"; fixed: {fixed}" if fixed else "")
        + (f"; times the ranks: {a_rank}" if a_rank else "")
        + "."
    )


def _environment_lines(report: Report) -> list[str]:
    return [
        ", ".join(f"{key} {value}" for key, value in each.items() if value)
        for each in report["environments"][:1]
    ]


def _header(name: str) -> str:
    return _HEADERS.get(name) or f"words a step along {name.rpartition('.')[2]}"


def _measure(point: Mapping[str, Any], name: str) -> str:
    value = point["measures"].get(name)
    return _NOTHING if value is None else _spell(value, _FORMATS.get(name, _WHOLE))


def _derived(point: Mapping[str, Any], name: str) -> str:
    value, text = point[name], "{:.0%}" if name == "efficiency" else "{:.2f}"
    if value is None:
        return _NOTHING
    return text.format(value) if isinstance(value, float) else _spell(value, text)


def _spell(value: Mapping[str, Any], text: str) -> str:
    """The median, and the spread where it shows."""
    median, low, high = (text.format(value[key]) for key in ("median", "low", "high"))
    return median if low == median == high else f"{median} ({low}-{high})"


def _runs(point: Mapping[str, Any]) -> str:
    failed = f", {point['failed']} failed" if point["failed"] else ""
    return f"{point['finished']}{failed}"
