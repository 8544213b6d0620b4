"""The points of an experiment, composed and converted; what must hold of them before any runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.comm.mesh import resolve_sizes
from dist_ml.config.convert import show, to_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.experiment.training_job import folder_name
from dist_ml.launch.mpiexec import cores
from dist_ml.launch.sbatch import allocated_ranks
from dist_ml.train.members import check_members
from dist_ml.train.metrics import flatten
from dist_ml.train.operator_axis import check_operator_axis
from dist_ml.train.pipeline import make_schedule
from dist_ml.train.pipeline_checks import check_asynchronous, check_axes

_MESH_AXES = ("data", "pipeline", "operator")
# What a step's work is made of; within a series over ranks it stays what it is.
_WORK = ("model.", "data.", "precision", "kernel")
_AMOUNT = ("data.num_train", "data.num_test")  # of work, not of its kind


@dataclass(frozen=True)
class Point:
    """One configuration that is run, `repetitions` times."""

    number: int  # from 1
    settings: Mapping[str, str]  # by axis
    overrides: tuple[str, ...]
    config: TrainConfig
    ranks: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return folder_name(self.number, [f"{key}={value}" for key, value in self.settings.items()])

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


def ranks_of(config: TrainConfig) -> int:
    """How many ranks a configuration says it has. `ConfigError` where it leaves that open."""
    if config.num_ranks is None:
        axis = next(axis for axis in _MESH_AXES if getattr(config.mesh, axis) is None)
        raise ConfigError(
            f"ranks is not set, and mesh.{axis}=null takes any number; vary ranks, or set it in "
            "fixed"
        )
    return config.num_ranks


def check_point(experiment: ExperimentConfig, config: TrainConfig, ranks: int) -> None:
    """`DistMLError` for a point that could not run, be it that it has too many ranks."""
    most = experiment.most_ranks
    if experiment.where == "allocation" and ranks > (tasks := allocated_ranks()):
        raise ConfigError(
            f"{ranks} ranks are more than this allocation's tasks, {tasks}; take fewer, or submit "
            f"it with --ntasks={ranks}"
        )
    if most is None and experiment.where in ("local", "emulated"):
        most = cores()
    if most is not None and ranks > most:
        raise ConfigError(
            f"{ranks} ranks are more than the {most} that are allowed; take fewer, or set "
            f"most_ranks={ranks}" + (" to have ranks share cores" if ranks > cores() else "")
        )
    check_training(config, ranks)


def check_training(config: TrainConfig, ranks: int) -> None:
    """`DistMLError` for a training that could not run on so many ranks: a mesh that they don't fit,
    a name that a family doesn't hold, a key without effect, a schedule that can't be made.
    """
    sizes = resolve_sizes({axis: getattr(config.mesh, axis) for axis in _MESH_AXES}, ranks)
    check_members(config)
    check_axes(config, sizes)
    check_operator_axis(config, sizes)
    if sizes["pipeline"] > 1:
        schedule = make_schedule(config.pipeline, sizes["pipeline"])
        check_asynchronous(config, schedule, sizes)


def check_points(experiment: ExperimentConfig, points: Sequence[Point]) -> None:
    """`ConfigError` for two points that are the same, and for series whose points can't be
    compared.
    """
    seen: dict[str, Point] = {}
    for point in points:
        key = show(_comparable(point.config))
        if key in seen:
            raise ConfigError(
                f"points {seen[key].number} ({seen[key].title}) and {point.number} "
                f"({point.title}) are the same configuration; leave one out, or set "
                "repetitions=2 to run every point twice"
            )
        seen[key] = point
    axis = scaling_axis(points)
    for group in series(points, axis).values():
        for point in group[1:]:
            _check_same_work(experiment.kind, group[0], point)


def scaling_axis(points: Sequence[Point]) -> str | None:
    """The axis along which the number of ranks grows: `ranks`, else the first that changes it and
    nothing but distinct numbers; None where no axis does.
    """
    axes = list(points[0].settings) if points else []
    for axis in sorted(axes, key=lambda name: name != "ranks"):
        groups = [[point.ranks for point in group] for group in series(points, axis).values()]
        distinct = all(len(set(ranks)) == len(ranks) for ranks in groups)
        if distinct and any(len(ranks) > 1 for ranks in groups):
            return axis
    return None


def series(
    points: Iterable[Point], axis: str | None
) -> dict[tuple[tuple[str, str], ...], list[Point]]:
    """Points that differ in `axis` alone, by their other settings, fewest ranks first; without an
    axis each point is one.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Point]] = {}
    for point in points:
        others = tuple((key, value) for key, value in point.settings.items() if key != axis)
        groups.setdefault(others, []).append(point)
    return {
        others: sorted(group, key=lambda point: point.ranks) for others, group in groups.items()
    }


def _check_same_work(kind: str, first: Point, other: Point) -> None:
    """Speed-ups compare the same steps (strong), or the same steps of a rank (weak)."""
    ours, theirs = _comparable(first.config), _comparable(other.config)
    for key in dict.fromkeys([*ours, *theirs]):
        same = ours.get(key) == theirs.get(key)
        if key.startswith(_WORK) and key not in _AMOUNT and not same:
            raise ConfigError(
                f"points {first.number} and {other.number} lie on one curve over ranks, but differ "
                f"in {key} ({show(ours.get(key))}, {show(theirs.get(key))}), so that their samples "
                f"are not the same work; make {key} an axis of its own"
            )
    each = [point.config.batch_size / (point.ranks if kind == "weak" else 1)
            for point in (first, other)]  # fmt: skip
    if each[0] == each[1]:
        return
    sizes = f"batch_size={first.config.batch_size} on {first.ranks} and "
    sizes += f"{other.config.batch_size} on {other.ranks} ranks"
    raise ConfigError(
        f"kind=weak keeps the work of a rank the same, but has {sizes}; set per_rank.batch_size"
        if kind == "weak"
        else f"kind=strong keeps the work the same on any number of ranks, but has {sizes}; set it "
        "in fixed, or make it an axis of its own"
    )


def _comparable(config: TrainConfig) -> dict[str, Any]:
    mapping = to_mapping(config)
    del mapping["folder"]
    return flatten(mapping)
