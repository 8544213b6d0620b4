"""What a run leaves behind, in one folder:

    config.yaml           the whole configuration, resolved
    metrics.jsonl         one line a logged step
    summary.json          how the run ended
    sample.txt            what a model of text writes
    timeline.json         of a pipeline: when each rank computed what in the last step
    trace/                with trace=true: timelines of some steps (docs/timeline.md)
    log/rank-0000.log …   one a rank
    checkpoints/          step-40/ …: the state after so many steps (docs/checkpoints.md);
                          model.safetensors: the trained weights, a plain state dict

Written by rank 0, but for the logs.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dist_ml.errors import DataError


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def timeline(self) -> Path:
        return self.path / "timeline.json"

    @property
    def trace(self) -> Path:
        return self.path / "trace"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.checkpoints / "model.safetensors"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Rank 0's last word: what `dist-ml report` tables. A run without one has not finished.
        `DataError` where it can't be written.
        """
        self.write(self.summary, json.dumps(jsonable(summary), indent=2) + "\n")

    def write(self, file: Path, text: str) -> None:
        """One of the folder's files, whole; `DataError` where it can't be written."""
        try:
            write_whole(file, text)
        except OSError as error:
            raise DataError(
                f"{file} can't be written: {error.strerror or error}; make room there"
            ) from error


def load_config(path: str | Path) -> dict[str, Any]:
    """The plain mapping in a run's config.yaml; `DataError` where there is none, or none that can
    be read.
    """
    file = RunFolder(Path(path)).config
    try:
        mapping = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        what = "has no config.yaml, so it is no run" if Path(path).is_dir() else "is no folder"
        raise DataError(
            f"{path} {what}; give the folder of a run, such as runs/digits/<time>"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise DataError(
            f"{file} must hold a mapping of keys, but holds a {type(mapping).__name__}; was it "
            "cut short?"
        )
    return mapping


def jsonable(value: Any) -> Any:
    """`value` with what JSON can't say put right: non-finite numbers become null, array scalars
    numbers, paths text.
    """
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (bool, int, float, str, type(None))) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(file: Path, text: str) -> None:
    """Replace `file` by `text`: whoever reads it meanwhile sees the old one or the new one, never a
    part.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)  # of a disk that was full
