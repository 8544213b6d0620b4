"""Runs side by side: what was configured differently, and what came of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_ml.train.metrics import flatten
from dist_ml.train.stored_run import StoredRun

# Keys that differ between any two runs, or have a column of their own.
_NOT_COMPARED = (
    "name",
    "folder",
    "ranks",
    "data.name",
    "model.name",
    "optimizer.name",
    "lr_schedule.name",
)
_RENAMED = {
    "data.name": "data",
    "model.name": "model",
    "optimizer.name": "optimizer",
    "lr_schedule.name": "lr_schedule",
}

_RESULTS = ("accuracy", "loss", "samples/s", "comm", "seconds", "speed-up")


@dataclass
class Row:
    """One run among others."""

    name: str  # its folder, without what all have in common
    run: StoredRun
    differing: dict[str, Any] = field(
        default_factory=dict
    )  # configuration keys that the runs don't share
    # samples/s over those of the run with the fewest ranks and the same configuration
    speed_up: float | None = None

    @property
    def ranks(self) -> int | None:
        value = self.run.summary.get("ranks", self.run.config.get("ranks"))
        return value if isinstance(value, int) else None

    def number(self, *names: str) -> float | None:
        """The first of these that the summary has, else the last that metrics.jsonl has, as a
        number.
        """
        for source in (self.run.summary, *reversed(self.run.steps)):
            for name in names:
                value = source.get(name)
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    return float(value)
        return None

    def cell(self, column: str) -> str:
        """What the table shows under `column`; `-` for what isn't known."""
        if column in self.differing:
            return spell(self.differing[column])
        formats = {
            "accuracy": "{:.2%}",
            "loss": "{:.4g}",
            "samples/s": "{:,.0f}",
            "comm": "{:.1%}",
            "seconds": "{:.1f}",
            "speed-up": "{:.2f}",
        }
        if column in formats:
            value = self.results()[column]
            return "-" if value is None else formats[column].format(value)
        return spell({"run": self.name, "ranks": self.ranks, "status": self.run.status}.get(column))

    def results(self) -> dict[str, float | None]:
        return {
            "accuracy": self.number("test_accuracy"),
            "loss": self.number("test_loss", "loss"),
            "samples/s": self.number("samples_per_second"),
            "comm": self.number("communication_share"),
            "seconds": self.number("seconds"),
            "speed-up": self.speed_up,
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.run.folder),
            "status": self.run.status,
            "problem": self.run.problem,
            "ranks": self.ranks,
            "differing": self.differing,
            **{
                name.replace("/", "_per_").replace("-", "_"): value
                for name, value in self.results().items()
            },
            "summary": self.run.summary,
        }


def compare(runs: list[StoredRun]) -> list[Row]:
    """One row a run, in the same order."""
    names = _short_names([run.folder for run in runs])
    rows = [Row(name, run) for name, run in zip(names, runs, strict=True)]
    readable = [row for row in rows if row.run.config]
    flat = [_comparable(row.run.config) for row in readable]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    differing = [key for key in keys if len({spell(config.get(key)) for config in flat}) > 1]
    for row, config in zip(readable, flat, strict=True):
        row.differing = {key: config.get(key) for key in differing}
    _add_speed_ups(readable)
    return rows


def columns(rows: list[Row]) -> list[tuple[str, bool]]:
    """Name of each column, and whether it holds numbers; results that no run has are left out."""
    differing = list(dict.fromkeys(key for row in rows for key in row.differing))
    results = [name for name in _RESULTS if any(row.results()[name] is not None for row in rows)]
    return [
        ("run", False),
        ("ranks", True),
        *((key, False) for key in differing),
        *((name, True) for name in results),
        ("status", False),
    ]


def shared(rows: Sequence[Row]) -> dict[str, Any]:
    """The configuration keys that all these runs have alike, of those that are compared."""
    flat = [_comparable(row.run.config) for row in rows]
    differing = {key for row in rows for key in row.differing}
    return {key: value for key, value in flat[0].items() if key not in differing} if flat else {}


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(config)
    names = {short: flat[key] for key, short in _RENAMED.items() if key in flat}
    return {**names, **{key: value for key, value in flat.items() if key not in _NOT_COMPARED}}


def _add_speed_ups(rows: list[Row]) -> None:
    """Within runs that differ in nothing but their ranks, where there are several numbers of
    ranks.
    """
    families: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        if (
            row.run.status == "finished"
            and row.ranks is not None
            and row.number("samples_per_second")
        ):
            families.setdefault(
                tuple((key, spell(value)) for key, value in row.differing.items()), []
            ).append(row)
    for family in families.values():
        base = min(family, key=lambda row: row.ranks or 0)
        if len({row.ranks for row in family}) > 1:
            for row in family:
                row.speed_up = (row.number("samples_per_second") or 0.0) / (
                    base.number("samples_per_second") or 1.0
                )


def _short_names(folders: list[Path]) -> list[str]:
    """The folders without the part that all share; one folder keeps its last two parts."""
    if len(folders) < 2:
        return ["/".join(folder.absolute().parts[-2:]) for folder in folders]
    common = os.path.commonpath([folder.absolute() for folder in folders])
    return [os.path.relpath(folder.absolute(), common) for folder in folders]


def spell(value: Any) -> str:
    """As a table shows a value."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
