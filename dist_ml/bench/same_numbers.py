"""`dist-ml bench same_numbers`: losses and weights on every mesh and under every pipeline schedule
against those of one process; under PipeDream-2BW, against a plain loop with its delayed update.
Dropout is on, and nothing divides evenly.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import require_meshes, to_arguments
from dist_ml.bench.form import Record, Result
from dist_ml.bench.same_numbers_checks import checks_of, dropout_check, record
from dist_ml.bench.same_numbers_part import DELAYED, DENSE, EXCHANGES, PRECISIONS, Run, measure
from dist_ml.bench.worlds import Worlds
from dist_ml.config.names import require_one_of
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, ScheduleError
from dist_ml.operator_parallel.layout import LAYOUTS
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES, make
from dist_ml.pipeline_parallel.schedules.request import Request


@dataclass(frozen=True)
class SameNumbersBench:
    """What to compare."""

    train: TrainConfig  # the run, dropout and all
    mpi: str
    meshes: tuple[tuple[int, ...], ...]  # data, pipeline, operator
    schedules: tuple[str, ...]  # each on every mesh with a pipeline that it takes
    # along the data axis, beside dense, which goes with all: each under one of the schedules
    exchanges: tuple[str, ...]
    # of layers that ranks share: each on every mesh with an operator axis and no pipeline, dense
    layouts: tuple[str, ...]
    precisions: tuple[str, ...]
    steps: int  # of each run
    weights: bool  # compare those after the last step, too: they are held by one process as text

    def __post_init__(self) -> None:
        require_meshes(self.meshes)
        for key, values, known in (
            ("schedules", self.schedules, SCHEDULES),
            ("exchanges", self.exchanges, EXCHANGES),
            ("layouts", self.layouts, LAYOUTS),
            ("precisions", self.precisions, PRECISIONS),
        ):
            for value in values:
                require_one_of(key, value, known)
        if not self.meshes or not self.precisions:
            raise ConfigError("nothing to compare; name at least one of meshes and of precisions")
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1")


def run(config: SameNumbersBench, worlds: Worlds) -> Result:
    one_process = [Run((1, 1, 1), None, DENSE)]
    (alone,) = _measured(config, worlds, 1, one_process)
    delayed = alone
    if DELAYED in config.schedules:
        (delayed,) = _measured(config, worlds, 1, [Run((1, 1, 1), DELAYED, DENSE)])
    (without,) = _measured(_without_dropout(config), worlds, 1, one_process)
    records: list[Record] = []
    for ranks in sorted({math.prod(mesh) for mesh in config.meshes}):
        meshes = [mesh for mesh in config.meshes if math.prod(mesh) == ranks]
        runs = [one for mesh in meshes for one in runs_of(config, mesh)]
        for one, found in zip(runs, _measured(config, worlds, ranks, runs), strict=True):
            records.append(record(one, found, delayed if one.schedule == DELAYED else alone))
    checks = [*checks_of(records, config.precisions), dropout_check(alone, without)]
    return Result("same_numbers", records, checks)


def runs_of(config: SameNumbersBench, mesh: tuple[int, ...]) -> Iterator[Run]:
    """All schedules and layouts that such a mesh takes; the other exchanges under these in turn."""
    data, pipeline, operator = mesh
    place = data, pipeline, operator
    schedules: list[str | None] = [None]
    if pipeline > 1:
        alone = operator == 1  # which 2BW needs
        able = [name for name in config.schedules if alone or name != DELAYED]
        schedules = [name for name in able if _takes(name, pipeline)]
    layouts: Sequence[str | None] = [None]
    if operator > 1 and pipeline == 1:
        layouts = config.layouts
    yield from (Run(place, name, DENSE, layout) for name in schedules for layout in layouts)
    under = [name for name in schedules if name != DELAYED]  # which doesn't take all of them
    if data > 1 and under:
        others = [name for name in config.exchanges if name != DENSE]
        for number, name in enumerate(others, start=pipeline):
            yield Run(place, under[number % len(under)], name)


def _without_dropout(config: SameNumbersBench) -> SameNumbersBench:
    model = dataclasses.replace(config.train.model, dropout=0.0)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, model=model))


def _takes(name: str, pipeline: int) -> bool:
    try:
        make(name, Request(pipeline, 2 * pipeline))
    except ScheduleError:
        return False
    return True


def _measured(
    config: SameNumbersBench, worlds: Worlds, ranks: int, runs: Sequence[Run]
) -> list[dict[str, Any]]:
    """What each of `runs` came to, by precision; all in one world."""
    arguments = {
        "train": to_arguments(config.train),
        "runs": runs,
        "precisions": config.precisions,
        "steps": config.steps,
        "weights": config.weights,
    }
    found: list[dict[str, Any]] = worlds.measure(
        "same_numbers",
        arguments,
        ranks=ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return found


BENCH = Bench(
    "losses and weights of every mesh and schedule against one process",
    SameNumbersBench,
    run,
    {"same_numbers": measure},
    ranks=8,
)
