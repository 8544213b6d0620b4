"""A run as it is found on disk: finished, failed, stopped, still running, or broken."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dist_ml.errors import DataError
from dist_ml.train import logs, metrics
from dist_ml.train.run_folder import RunFolder, load_config

Status = Literal["finished", "failed", "stopped", "running", "broken off", "unreadable"]


@dataclass(frozen=True)
class StoredRun:
    """One run. `problem` says in words what went wrong, or what couldn't be read; empty when
    nothing did.
    """

    folder: Path
    status: Status
    problem: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl


def find(path: Path) -> list[Path]:
    """The run folders at or below `path`, in natural order (2 before 10); `DataError` where there
    are none.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder; give the folder of a run, or one that holds runs")
    found = [file.parent for file in path.rglob("config.yaml")]
    if not found:
        raise DataError(
            f"{path} holds no run (no config.yaml in it or below); runs are made by dist-ml train"
        )
    return sorted(found, key=lambda folder: [_natural(part) for part in folder.parts])


def read(folder: Path) -> StoredRun:
    """Everything in a run's folder. Never raises for what is broken there: the result says it."""
    paths, problems = RunFolder(folder), []
    try:
        config = load_config(folder)
    except DataError as error:
        return StoredRun(folder, "unreadable", str(error))
    try:
        steps = metrics.read(paths.metrics) if paths.metrics.exists() else []
    except DataError as error:
        steps, problems = [], [str(error)]
    try:
        summary = read_summary(paths.summary)
    except DataError as error:
        return StoredRun(
            folder, "unreadable", "; ".join([*problems, str(error)]), config, {}, steps
        )
    status, reason = _status(folder, summary)
    return StoredRun(
        folder, status, "; ".join(filter(None, [*problems, reason])), config, summary, steps
    )


def read_summary(file: Path) -> dict[str, Any]:
    """What a summary.json holds; {} where there is none, `DataError` where it can't be read."""
    try:
        summary = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} can't be read ({error}); remove it, and the run counts as broken off"
        ) from error
    if not isinstance(summary, dict):
        raise DataError(
            f"{file} must hold one JSON object; remove it, and the run counts as broken off"
        )
    return summary


def _status(folder: Path, summary: dict[str, Any]) -> tuple[Status, str]:
    failure = logs.first_failure(folder)
    if failure is not None:
        return "failed", failure
    if summary.get("status") == "stopped":
        return "stopped", f"by {summary.get('signal')}, and saved: resume=auto goes on with it"
    if summary.get("status") == "failed":
        return "failed", str(summary.get("error", ""))
    if summary:
        return "finished", ""
    if logs.is_alive(folder):
        return "running", ""
    return (
        "broken off",
        "it has no summary.json, no failure in its logs, and no process that holds them: killed, "
        "or cut off",
    )


def _natural(part: str) -> list[tuple[bool, int, str]]:
    """Sorts numbers inside names by value."""
    pieces: list[tuple[bool, int, str]] = []
    for character in part:
        if character.isdigit() and pieces and not pieces[-1][0]:
            pieces[-1] = (False, pieces[-1][1] * 10 + int(character), "")
        else:
            pieces.append(
                (False, int(character), "") if character.isdigit() else (True, 0, character)
            )
    return pieces
