"""What an experiment keeps, so that the same command goes on where it was stopped:

experiment.yaml            its configuration, resolved
1_ranks=1/1 …              a run folder for each point and repetition, as `dist-ml train` leaves it
…/failure.json             how its job ended, where it failed
…/slurm_job                the number of its job, where Slurm runs it
failed/1_ranks=1,1,1 …     runs that did not end well, set aside when they are run again
report.json, report.md     at the end, with plots
"""

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from dist_ml.config.convert import show, to_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import ConfigError, DataError
from dist_ml.experiment.points import Point
from dist_ml.train import stored_run
from dist_ml.train.metrics import flatten
from dist_ml.train.run_folder import load_config, write_whole
from dist_ml.train.stored_run import StoredRun

# Keys that say how runs are waited for, and not what is measured: they may change at any time.
_FREE = {"folder", "repetitions", "time_limit_seconds"}
_FREE |= {"slurm.wait_seconds", "slurm.jobs_at_once", "slurm.poll_seconds"}
_ENDING_SECONDS = (
    20.0  # that ranks may still live after the experiment that started them was killed
)
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """One repetition of a point."""

    point: Point
    repetition: int  # from 1
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.point.title}, repetition {self.repetition}"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"

    def stored(self) -> StoredRun:
        """As it is found on disk; a run whose job failed has failed, whatever it wrote."""
        found = stored_run.read(self.folder)
        problem = _failure_in(self.failure)
        if problem is None:
            return found
        return StoredRun(self.folder, "failed", problem, found.config, found.summary, found.steps)

    def is_finished(self) -> bool:
        return self.folder.is_dir() and self.stored().status == "finished"

    def record_failure(self, status: int, problem: str, output: str) -> None:
        """Keep how the job ended: its exit status, one line of words, and what it printed last."""
        kept = {"status": status, "problem": problem, "output": output}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.failure, json.dumps(kept, indent=2) + "\n")
        except OSError as error:
            raise _unwritable(self.folder, error) from error


class ExperimentFolder:
    """The folder of one experiment, which one process at a time may go on with. To be used in a
    `with` statement.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.path = Path(config.folder)
        self._lock: TextIO | None = None

    def __enter__(self) -> "ExperimentFolder":
        """Make the folder, or go on with one that holds the same experiment; `ConfigError` where it
        holds anything else, or another process is at it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
            self._take_lock(self._lock)
            self._require_own()
            mapping = yaml.safe_dump(to_mapping(self.config), sort_keys=False)
            write_whole(self.path / "experiment.yaml", mapping)
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.path, error) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def run(self, point: Point, repetition: int) -> Run:
        return Run(point, repetition, self.path / point.name / str(repetition))

    def runs(self, points: Sequence[Point]) -> list[Run]:
        """All of them, in the order in which they are run: every point once, then again in reverse,
        so that a machine that slows down slows all points.
        """
        return [
            self.run(point, repetition)
            for repetition in range(1, self.config.repetitions + 1)
            for point in points[:: 1 if repetition % 2 else -1]
        ]

    def unfinished(self, points: Sequence[Point]) -> list[Run]:
        """The runs that have no finished summary; `ConfigError` for a finished one of another
        configuration, since it would be compared with the others.
        """
        left = []
        for run in self.runs(points):
            if run.is_finished():
                _require_same_run(run)
            else:
                left.append(run)
        return left

    def set_aside(self, run: Run) -> None:
        """Move what an unfinished run has left, to make room for it to run again; `ConfigError`
        while a rank of it still lives.
        """
        if not run.folder.exists():
            return
        deadline = time.monotonic() + _ENDING_SECONDS
        while stored_run.read(run.folder).status == "running":
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{run.folder} is a run that still goes on; wait for its end, or end it"
                )
            time.sleep(_POLL_SECONDS)
        failed = self.path / "failed"
        try:
            failed.mkdir(exist_ok=True)
            number = 1
            while (place := failed / f"{run.point.name},{run.repetition},{number}").exists():
                number += 1
            run.folder.rename(place)
        except OSError as error:
            raise _unwritable(failed, error) from error

    def _take_lock(self, lock: TextIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"folder={self.path} is gone on with by another dist-ml experiment; wait for its "
                "end, or choose another folder"
            ) from None
        except OSError:  # not every file system has locks
            return

    def _require_own(self) -> None:
        """`ConfigError` unless the folder is free, or holds this experiment."""
        file = self.path / "experiment.yaml"
        if not file.exists():
            names = sorted(each.name for each in self.path.iterdir())
            others = [name for name in names if not name.startswith(".")]
            if others:
                raise ConfigError(
                    f"folder={self.path} holds {others[0]} and is no experiment's; choose another "
                    "folder"
                )
            return
        differences = _differences(_stored_config(file), to_mapping(self.config))
        if differences:
            key, there, here = differences[0]
            raise ConfigError(
                f"folder={self.path} holds an experiment with {key}={show(there)}, not "
                f"{show(here)}; choose another folder, or set {key} to what it is there"
            )


def _require_same_run(run: Run) -> None:
    differences = _differences(load_config(run.folder), to_mapping(run.point.config))
    if differences:
        key, there, here = differences[0]
        raise ConfigError(
            f"{run.folder} was trained with {key}={show(there)}, but the experiment has "
            f"{show(here)} now: a configuration that it is composed of has changed; choose another "
            "folder"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value there, value here) of all keys that differ and matter."""
    old, new = (flatten(json.loads(json.dumps(each))) for each in (there, here))
    return [
        (key, old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if key not in _FREE and old.get(key) != new.get(key)
    ]


def _stored_config(file: Path) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(file.read_text())
        if isinstance(mapping, dict):
            return mapping
        reason = "it holds no mapping"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise DataError(f"{file} can't be read ({reason}); choose another folder")


def _failure_in(file: Path) -> str | None:
    """The words in failure.json; None where there is none."""
    try:
        kept = json.loads(file.read_text())
        return str(kept["problem"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "failure.json can't be read"


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"folder={path} can't be written: {error.strerror or error}; choose another folder"
    )
