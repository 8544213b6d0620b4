"""metrics.jsonl: one JSON object a logged step, valid JSON even where a loss is not a number."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from dist_ml.errors import DataError
from dist_ml.train.run_folder import jsonable, write_whole


class JsonLines:
    """The tracker that is always there. Each line reaches the file at once, so that `dist-ml
    report` sees a running run; `DataError` where the disk is full.
    """

    def __init__(self, file: Path) -> None:
        self._file: TextIO = file.open("a", buffering=1)

    def start(self, config: Mapping[str, Any]) -> None:
        """The configuration is in config.yaml already."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **jsonable(values)}) + "\n")
        except OSError as error:
            raise DataError(
                f"{self._file.name} can't be written: {error.strerror or error}; make room there"
            ) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told when it was written
            self._file.close()


def cut(file: Path, step: int) -> None:
    """Leave out what was logged from `step` on (an evaluation has the number of steps before it):
    a run that goes on from there writes it again. Whole or not at all; `DataError` where it can't
    be.
    """
    if not file.exists():
        return
    kept = [json.dumps(line) for line in read(file) if line["step"] < step]
    try:
        write_whole(file, "".join(f"{line}\n" for line in kept))
    except OSError as error:
        raise DataError(
            f"{file} can't be written: {error.strerror or error}; make room there"
        ) from error


def holds(file: Path, step: int) -> bool:
    """Is there a line of this step (not of an evaluation before it)?"""
    return file.exists() and any(line.get("step") == step and "loss" in line for line in read(file))


def read(file: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl. A last line that is cut short (a run that is killed or still
    writing) is left out; any other that can't be read is a `DataError`, as is a missing file."""
    try:
        lines = file.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    return list(_parse(file, lines))


def _parse(file: Path, lines: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or type(entry.get("step")) is not int:
                raise ValueError("its step is no whole number")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline after it
                return
            raise DataError(
                f"{file} line {number} is no JSON object of a step ({error}); remove it"
            ) from error
        yield entry


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat
