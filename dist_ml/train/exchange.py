"""From a configuration to what the ranks of the data axis exchange: reducer, optimizer, and what
makes parameters whole after an update.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.thread_level import require_thread_level
from dist_ml.config.names import require_one_of
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.averagers import ParameterAverager, PeriodicAverager
from dist_ml.data_parallel.daso import DasoAverager
from dist_ml.data_parallel.flat_parameters import FlatParameters
from dist_ml.data_parallel.gradient_exchange import dense_or_sparse
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.local_reducer import LocalReducer
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sharded_reducers import Zero1Reducer, Zero2Reducer
from dist_ml.data_parallel.tree_reducer import TreeReducer
from dist_ml.errors import ConfigError
from dist_ml.partition import Range
from dist_ml.train.optimizer import LRSchedule, build_optimizer
from dist_ml.train.updater import Updater
from dist_ml.train.weight_versions import WeightVersions


class Setting(NamedTuple):
    """What an exchange is built from."""

    config: TrainConfig
    named: dict[str, torch.nn.Parameter]  # this rank's parameters, in order
    num_slots: int
    data: Communicator  # the ranks that hold copies of them
    num_steps: int
    thread_level: str = "SERIALIZED"  # that exchanging on a thread needs, beside the main one
    replicated: Sequence[str] = ()  # parameters that other ranks hold alike, and don't exchange
    weight_versions: int = 1  # of the parameters, that the schedule needs
    names: Sequence[str] = ()  # of all of the model's parameters, whichever ranks have them

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named.values())


class Exchange(NamedTuple):
    """What a trainer needs of its data axis."""

    reducer: GradientReducer
    optimizer: torch.optim.Optimizer
    gather: Callable[[], None] | None = None
    averager: ParameterAverager | None = None
    versions: WeightVersions | None = None
    owned: Sequence[Range] | None = None  # by the optimizer, of the flat vector of parameters

    def updater(self, lr_schedule: LRSchedule) -> Updater:
        return Updater(
            self.optimizer, lr_schedule, self.gather, self.averager, self.versions, self.owned
        )


def build_exchange(setting: Setting) -> Exchange:
    """By `data_parallel.name`, `sparse` and `allreduce`. Collective."""
    name = setting.config.data_parallel.name
    require_one_of("data_parallel.name", name, DATA_PARALLEL)
    return DATA_PARALLEL[name].build(setting)


def _every_step(setting: Setting) -> Exchange:
    config = setting.config
    if config.reproduce.shards is not None:
        return Exchange(_in_a_tree(setting), build_optimizer(config.optimizer, setting.parameters))
    reducer = dense_or_sparse(
        setting.named,
        setting.data,
        config.allreduce,
        config.sparse,
        num_slots=setting.num_slots,
        seed=config.seed,
        check_first=config.nonfinite == "skip",
        replicated=setting.replicated,
        thread_level=setting.thread_level,
    )
    if setting.weight_versions == 1:
        return Exchange(reducer, build_optimizer(config.optimizer, setting.parameters))
    versions = WeightVersions(setting.parameters)
    return Exchange(reducer, build_optimizer(config.optimizer, versions.stepped), versions=versions)


def _in_a_tree(setting: Setting) -> TreeReducer:
    assert setting.config.reproduce.shards is not None
    names = list(setting.names)
    return TreeReducer(
        setting.parameters,
        setting.num_slots,
        setting.data,
        setting.config.reproduce.shards,
        [names.index(name) for name in setting.named],
        len(names),
    )


def _zero1(setting: Setting) -> Exchange:
    parameters = FlatParameters(setting.parameters, setting.data)
    gradients = FlatGradients(setting.parameters, setting.num_slots)
    return _sharded(setting, parameters, Zero1Reducer(gradients, setting.data))


def _zero2(setting: Setting) -> Exchange:
    parameters = FlatParameters(setting.parameters, setting.data)
    bucket_bytes = setting.config.allreduce.bucket_bytes
    reducer = Zero2Reducer(setting.parameters, setting.num_slots, setting.data, bucket_bytes)
    return _sharded(setting, parameters, reducer)


def _sharded(
    setting: Setting, parameters: FlatParameters, reducer: Zero1Reducer | Zero2Reducer
) -> Exchange:
    parameters.shard.grad = reducer.shard
    optimizer = build_optimizer(setting.config.optimizer, [parameters.shard])
    return Exchange(reducer, optimizer, gather=parameters.gather, owned=[parameters.range])


def _periodic(setting: Setting) -> Exchange:
    config = setting.config
    parameters = FlatParameters(setting.parameters, setting.data)
    gradients = FlatGradients(setting.parameters, setting.num_slots)
    optimizer = build_optimizer(config.optimizer, setting.parameters)
    averager = PeriodicAverager(parameters, optimizer, _of_its_own(setting), config.data_parallel)
    return Exchange(LocalReducer(gradients, setting.data, None), optimizer, averager=averager)


def _daso(setting: Setting) -> Exchange:
    config = setting.config
    parameters = FlatParameters(setting.parameters, setting.data)
    require_thread_level(setting.data, "MULTIPLE", "data_parallel=daso")
    intra_node = _inside_the_node(setting.data)
    gradients = FlatGradients(setting.parameters, setting.num_slots, intra_node.allocate)
    optimizer = build_optimizer(config.optimizer, setting.parameters)
    averager = DasoAverager(
        parameters,
        optimizer,
        _of_its_own(setting),
        config.data_parallel,
        num_nodes=setting.data.size // intra_node.comm.size,
        num_steps=setting.num_steps,
    )
    reducer = LocalReducer(gradients, setting.data, intra_node)
    return Exchange(reducer, optimizer, averager=averager)


class DataParallelMember(NamedTuple):
    """How an exchange is made, and the keys that it reads beside those of all."""

    build: Callable[[Setting], Exchange]
    reads: tuple[str, ...] = ()


_DENSE_KEYS = (
    "allreduce.name",
    "allreduce.overlap",
    "allreduce.bucket_bytes",
    "sparse.allreduce",
    "reproduce.shards",
    "fault.rerun",
)
_DASO_KEYS = ("warmup_steps", "cooldown_steps", "plateau_steps")

# A new way to share the data axis is a builder and an entry here.
DATA_PARALLEL: dict[str, DataParallelMember] = {
    "dense": DataParallelMember(_every_step, _DENSE_KEYS),
    "zero1": DataParallelMember(_zero1, ("fault.rerun",)),
    "zero2": DataParallelMember(_zero2, ("allreduce.bucket_bytes", "fault.rerun")),
    "periodic": DataParallelMember(_periodic, ("allreduce.name", "data_parallel.period")),
    "daso": DataParallelMember(
        _daso,
        ("allreduce.name", "data_parallel.period", *(f"data_parallel.{key}" for key in _DASO_KEYS)),
    ),
}


def _of_its_own(setting: Setting) -> Allreduce:
    """The configured allreduce over all ranks, on a communicator that nobody else uses."""
    comm = setting.data.split(0)
    assert comm is not None
    return family.make(setting.config.allreduce.name, comm, setting.config.allreduce.wire)


def _inside_the_node(comm: Communicator) -> Allreduce:
    """Over the ranks of this node; `ConfigError` unless all nodes have as many, since a node's sum
    is scaled to that of all.
    """
    node = comm.split_by_node()
    sizes = sorted(set(comm.allgather_objects(node.size)))
    if len(sizes) > 1:
        raise ConfigError(
            f"data_parallel.name=daso needs as many ranks on every node, but they have {sizes[0]} "
            f"to {sizes[-1]}"
        )
    return family.make("shared_memory", node)
