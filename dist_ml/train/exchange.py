"""From a configuration to what the ranks of the data axis exchange: gradients, where they live,
reducer and optimizer.
"""

from typing import NamedTuple

import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.dense_reducer import DenseReducer, Overlap
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.local_steps import Daso, Periodic
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sharded import (
    FlatParameters,
    ShardedGradients,
    ShardReducer,
    TransientGradients,
)
from dist_ml.data_parallel.sparse_reducer import SparseReducer, resolve
from dist_ml.errors import ConfigError
from dist_ml.train.optimizer import build_optimizer


class Exchange(NamedTuple):
    """What a trainer needs of its data axis."""

    gradients: FlatGradients | TransientGradients
    reducer: GradientReducer
    optimizer: torch.optim.Optimizer


def build_exchange(
    config: TrainConfig, model: torch.nn.Module, comm: Communicator, num_steps: int
) -> Exchange:
    """By `data_parallel.name`, `sparse` and `allreduce`. Collective."""
    if config.data_parallel.name in ("zero1", "zero2"):
        return _sharded(config, model, comm)
    if config.data_parallel.name in ("daso", "periodic"):
        return _local_steps(config, model, comm, num_steps)
    num_words = sum(parameter.numel() for parameter in model.parameters())
    sparse = resolve(config.sparse, num_words, comm)
    if sparse.allreduce != "none":
        gradients = FlatGradients(model.parameters())
        names = [name for name, _ in model.named_parameters()]
        reducer: GradientReducer = SparseReducer(gradients, names, comm, sparse, config.seed)
    else:
        allreduce = family.make(config.allreduce.name, comm, config.allreduce.wire)
        gradients = FlatGradients(model.parameters(), allreduce.allocate)
        reducer = DenseReducer(
            gradients, allreduce, choose_overlap(config, comm), config.allreduce.bucket_bytes
        )
    return Exchange(gradients, reducer, build_optimizer(config.optimizer, model.parameters()))


def choose_overlap(config: TrainConfig, comm: Communicator) -> Overlap:
    """`auto` sends behind the backward pass where ranks are on several nodes; inside one there is
    no wire to wait for.
    """
    if comm.size == 1:
        return "none"
    if config.allreduce.overlap != "auto":
        return config.allreduce.overlap
    node = comm.split_by_node()
    several = node.size < comm.size
    node.free()
    return "thread" if several else "none"


def _sharded(config: TrainConfig, model: torch.nn.Module, comm: Communicator) -> Exchange:
    parameters = FlatParameters(model.parameters(), comm)
    gradients: ShardedGradients | TransientGradients
    if config.data_parallel.name == "zero1":
        gradients = ShardedGradients(model.parameters(), comm)
    else:
        gradients = TransientGradients(model.parameters(), comm, config.allreduce.bucket_bytes)
    parameters.shard.grad = gradients.shard
    optimizer = build_optimizer(config.optimizer, [parameters.shard])
    optimizer.register_step_post_hook(parameters.gather)
    return Exchange(gradients, ShardReducer(gradients), optimizer)


def _local_steps(
    config: TrainConfig, model: torch.nn.Module, comm: Communicator, num_steps: int
) -> Exchange:
    parameters = FlatParameters(model.parameters(), comm)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    across = comm.split(0)
    assert across is not None
    far = family.make(config.allreduce.name, across, config.allreduce.wire)
    if config.data_parallel.name == "periodic":
        gradients = FlatGradients(model.parameters())
        reducer: GradientReducer = Periodic(
            gradients, parameters, optimizer, comm, None, far, config=config.data_parallel
        )
        return Exchange(gradients, reducer, optimizer)
    near = _inside_the_node(comm)
    gradients = FlatGradients(model.parameters(), near.allocate)
    reducer = Daso(
        gradients,
        parameters,
        optimizer,
        comm,
        near,
        far,
        config=config.data_parallel,
        num_steps=num_steps,
    )
    return Exchange(gradients, reducer, optimizer)


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
