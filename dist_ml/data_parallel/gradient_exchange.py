"""The reducer that dense and sparse settings ask for, whoever trains: the trainer or a user's own
loop.
"""

from collections.abc import Mapping, Sequence

import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.thread_level import require_thread_level
from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.dense_reducer import DenseReducer, Overlap
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sparse_choice import resolve
from dist_ml.data_parallel.sparse_reducer import SparseReducer


def dense_or_sparse(
    named: Mapping[str, torch.nn.Parameter],
    comm: Communicator,
    allreduce: AllreduceConfig,
    sparse: SparseConfig,
    *,
    num_slots: int = 0,
    seed: int = 0,
    check_first: bool = False,
    replicated: Sequence[str] = (),
    thread_level: str = "SERIALIZED",
    attach_sinks: bool = True,
) -> DenseReducer | SparseReducer:
    """Sums the gradients of `named` over `comm` every step, by `sparse` where it is on, else by
    `allreduce`. Collective.

    `thread_level`: what exchanging on a thread needs of MPI here. The others as `SparseReducer`
    and `FlatGradients` have them. `ConfigError` on all ranks for settings that can't be built.
    """
    parameters = list(named.values())
    length = sum(parameter.numel() for parameter in parameters)
    dtype = str(parameters[0].dtype).removeprefix("torch.")
    chosen = resolve(sparse, length, comm, dtype)
    if chosen.allreduce != "none":
        if chosen.overlap:
            require_thread_level(comm, thread_level, f"sparse.overlap={chosen.overlap}")
        gradients = FlatGradients(parameters, num_slots, attach_sinks=attach_sinks)
        return SparseReducer(gradients, list(named), comm, chosen, seed, check_first, replicated)
    algorithm = family.make(allreduce.name, comm, allreduce.wire)
    gradients = FlatGradients(parameters, num_slots, algorithm.allocate, attach_sinks)
    overlap = choose_overlap(allreduce.overlap, comm)
    if overlap == "thread":
        require_thread_level(comm, thread_level, "allreduce.overlap=thread")
    return DenseReducer(gradients, algorithm, overlap, allreduce.bucket_bytes)


def choose_overlap(wanted: str, comm: Communicator) -> Overlap:
    """`auto` sends during the backward pass where ranks are on several nodes; inside one there is
    no wire to wait for. Collective.
    """
    if comm.size == 1:
        return "none"
    if wanted != "auto":
        return wanted  # type: ignore[return-value]  # the configuration has checked it
    node = comm.split_by_node()
    several = node.size < comm.size
    node.free()
    return "thread" if several else "none"
