"""What `dist-ml plan --search` may choose: the ways to spread one training step over its ranks."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from itertools import product
from typing import Any, NamedTuple

from dist_ml.comm.allreduce.wire import WireName
from dist_ml.comm.mesh import AXES
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.operator_parallel.layout import LAYOUTS
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES

# The keys that are tried; one that the command line names keeps its value.
KNOBS = (
    *(f"mesh.{axis}" for axis in AXES),
    "pipeline.name",
    "pipeline.microbatches",
    "accumulation",
    "operator_parallel.layout",
    "data_parallel.name",
    "allreduce.name",
    "allreduce.wire",
    "precision",
)
# An asynchronous schedule is another algorithm, and is taken where it is named alone.
_SCHEDULES = tuple(
    name for name, one in SCHEDULES.items() if name != "file" and not one.is_asynchronous
)
_PRECISIONS = ("fp32", "bf16")


class Spread(NamedTuple):
    """How a step is computed: all but how gradients are summed over the data axis."""

    data: int
    pipeline: int
    operator: int
    microbatches: int
    schedule: str | None  # None: no pipeline
    layout: str | None  # None: whole layers
    precision: str

    def configured(self, config: TrainConfig) -> TrainConfig:
        """`ConfigError` for values that exclude each other."""
        changes: dict[str, Any] = {
            "mesh": MeshConfig(self.data, self.pipeline, self.operator),
            "precision": self.precision,
        }
        if self.schedule is None:
            changes["accumulation"] = self.microbatches
        else:
            changes["pipeline"] = dataclasses.replace(
                config.pipeline, name=self.schedule, microbatches=self.microbatches
            )
        if self.layout is not None:
            changes["operator_parallel"] = dataclasses.replace(
                config.operator_parallel, layout=self.layout
            )
        return dataclasses.replace(config, **changes)


class Exchange(NamedTuple):
    """How gradients are summed over the data axis."""

    data_parallel: str
    allreduce: str
    wire: WireName

    def configured(self, config: TrainConfig) -> TrainConfig:
        """`ConfigError` for values that exclude each other."""
        data_parallel = dataclasses.replace(config.data_parallel, name=self.data_parallel)
        allreduce = dataclasses.replace(config.allreduce, name=self.allreduce, wire=self.wire)
        return dataclasses.replace(config, data_parallel=data_parallel, allreduce=allreduce)

    @staticmethod
    def of(config: TrainConfig) -> "Exchange":
        return Exchange(config.data_parallel.name, config.allreduce.name, config.allreduce.wire)


_SHARDED = (Exchange("zero1", "native", "fp32"), Exchange("zero2", "native", "fp32"))
_IN_A_NODE = (Exchange("dense", "native", "fp32"), Exchange("dense", "auto", "fp32"), *_SHARDED)
# There all whole allreduces are rings; wires narrower than numbers save half.
_BETWEEN_NODES = (Exchange("dense", "native", "fp32"), Exchange("dense", "ring", "bf16"), *_SHARDED)


class Candidates:
    """Those of one configuration on `num_ranks` ranks. `held`: keys that keep its values;
    `most_operator`: ranks that may share a layer, unless the mesh is held.
    """

    def __init__(
        self, config: TrainConfig, held: Collection[str], num_ranks: int, most_operator: int
    ) -> None:
        self.config, self.num_ranks = config, num_ranks
        self._held, self._most_operator = held, most_operator

    def spreads(self) -> Iterator[Spread]:
        for data, pipeline, operator in self._meshes():
            for rest in product(
                self._microbatches(data, pipeline),
                self._values("pipeline.name", _SCHEDULES) if pipeline > 1 else (None,),
                self._values("operator_parallel.layout", LAYOUTS) if operator > 1 else (None,),
                self._precisions(),
            ):
                yield Spread(data, pipeline, operator, *rest)

    def exchanges(self, spread: Spread, between_nodes: bool) -> list[Exchange]:
        own = Exchange.of(self.config)
        if spread.data == 1:
            return [own]
        held = [
            place
            for place, key in enumerate(("data_parallel.name", "allreduce.name", "allreduce.wire"))
            if key in self._held
        ]
        tried = _BETWEEN_NODES if between_nodes else _IN_A_NODE
        fitting = [each for each in tried if all(each[place] == own[place] for place in held)]
        return list(dict.fromkeys((own, *fitting)))

    def _values(self, key: str, tried: Collection[str]) -> Collection[str]:
        return (_get(self.config, key),) if key in self._held else tried

    def _precisions(self) -> Collection[str]:
        """fp64 is chosen for its digits."""
        own = self.config.precision
        return (own,) if own == "fp64" else self._values("precision", _PRECISIONS)

    def _meshes(self) -> Iterator[tuple[int, int, int]]:
        held = {
            place: _get(self.config, f"mesh.{axis}")
            for place, axis in enumerate(AXES)
            if f"mesh.{axis}" in self._held and _get(self.config, f"mesh.{axis}") is not None
        }
        for pipeline in _divisors(self.num_ranks):
            for operator in _divisors(self.num_ranks // pipeline):
                mesh = self.num_ranks // pipeline // operator, pipeline, operator
                fits = operator <= self._most_operator or 2 in held
                if fits and all(mesh[place] == size for place, size in held.items()):
                    yield mesh

    def _microbatches(self, data: int, pipeline: int) -> list[int]:
        """Powers of two, and the pipeline's ranks times these; no piece without a sample."""
        if pipeline > 1 and "pipeline.microbatches" in self._held:
            return [self.config.pipeline.num_microbatches(pipeline)]
        if pipeline == 1 and "accumulation" in self._held:
            return [self.config.accumulation]
        most = self.config.batch_size // data
        powers = [1 << k for k in range(most.bit_length())]
        return sorted({m for power in powers for m in (power, pipeline * power) if m <= most})


def overrides(chosen: TrainConfig, config: TrainConfig) -> list[str]:
    """What the command line says to make `config` the chosen one."""
    return [
        f"{key}={_get(chosen, key)}"
        for key in KNOBS
        if key.startswith("mesh.") or _get(chosen, key) != _get(config, key)
    ]


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _get(config: TrainConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
