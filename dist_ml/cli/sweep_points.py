"""The points of a sweep, as `--multirun` runs them one after the other, and a job array of Slurm
side by side.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_ml.cli import compose
from dist_ml.cli.arguments import Request
from dist_ml.cli.composed_point import composed_point
from dist_ml.config.experiment import key_of
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.experiment.training_job import TrainingJob, folder_name

_FOLDER = "folder"  # of the whole sweep, where it is given; each point has one below it


@dataclass(frozen=True)
class Point:
    """One run of the sweep."""

    number: int  # from 1, in what is said and in the folder's name
    overrides: tuple[str, ...]
    config: TrainConfig
    folder: Path

    @property
    def ranks(self) -> int:
        return self.config.num_ranks or 1

    def job(self, request: Request) -> TrainingJob:
        """What runs it."""
        return TrainingJob(
            request.config_name,
            request.config_dir,
            self.overrides,
            self.folder,
            self.ranks,
            request.debug,
        )


def plan(request: Request) -> list[Point]:
    """All points, each composed and converted once, so that a sweep with a mistake in it stops
    before it starts.
    """
    points: list[Point] = []
    root: Path | None = None
    for number, overrides, name in _named(request):
        config = _composed(request, number, overrides)
        root = root or _root(request, config, time.strftime("%Y-%m-%d_%H-%M-%S"))
        points.append(Point(number, without_folder(overrides), config, root / name))
    return points


def point(request: Request, index: int, subfolder: str) -> Point:
    """One point alone, from 0 as in a job array; the others are not composed. `subfolder`: of
    `multirun/NAME`, for the sweep, where the request names no folder.
    """
    named = list(_named(request))
    if not 0 <= index < len(named):
        raise ConfigError(
            f"task {index} of the job array has no point: the sweep has {len(named)}; submit it "
            f"with --array=0-{len(named) - 1}"
        )
    number, overrides, name = named[index]
    config = _composed(request, number, overrides)
    folder = _root(request, config, subfolder) / name
    return Point(number, without_folder(overrides), config, folder)


def _named(request: Request) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """The number, overrides and folder's name of each point, in order."""
    swept = compose.sweep_points(request)
    positions = range(len(swept[0])) if swept else ()
    varied = [i for i in positions if len({overrides[i] for overrides in swept}) > 1]
    if any(key_of(swept[0][i]) == _FOLDER for i in varied):
        raise ConfigError(
            "folder can't be varied: each point of a sweep has a folder of its own below it; give "
            "one, or leave it out"
        )
    for number, overrides in enumerate(swept, 1):
        yield number, overrides, folder_name(number, [overrides[i] for i in varied])


def _composed(request: Request, number: int, overrides: tuple[str, ...]) -> TrainConfig:
    try:
        return composed_point(request, overrides)
    except DistMLError as error:
        raise ConfigError(
            f"point {number} of the sweep ({' '.join(overrides)}): {error}"
        ) from error


def _root(request: Request, config: TrainConfig, subfolder: str) -> Path:
    """Where the sweep's runs lie."""
    given = any(key_of(override) == _FOLDER for override in request.overrides)
    return Path(config.folder) if given else Path("multirun", config.name, subfolder)


def without_folder(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides of a sweep or a point, to which its folder is added."""
    return tuple(override for override in overrides if key_of(override) != _FOLDER)
