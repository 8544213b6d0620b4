"""Communication hooks for torch's DistributedDataParallel, on this project's backend:

    import dist_ml.torch_backend
    from dist_ml import comm_hooks

    torch.distributed.init_process_group("dist_ml")
    model = DistributedDataParallel(network)
    model.register_comm_hook(comm_hooks.SparseState(0.01), comm_hooks.sparse_hook)     # top-k
    model.register_comm_hook(comm_hooks.AllreduceState(wire="bf16"), comm_hooks.allreduce_hook)

one of them. Both leave the mean over the ranks, as DDP without a hook does.
"""

import math
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.gradients import GradientBuffer
from dist_ml.data_parallel.sparse_choice import resolve, sparse_config
from dist_ml.data_parallel.sparse_reducer import SparseReducer
from dist_ml.errors import CommunicationError, ConfigError
from dist_ml.process_group.process_group import MpiProcessGroup

_SELECTED_FROM = (torch.float32, torch.float64)


class AllreduceState:
    """For `allreduce_hook`: each bucket goes through `allreduce` (as `DataParallel` has it), with
    `wire` fp32, bf16 or fp16 on the way; sums are made in float32.

    `process_group`: DDP's; None: the default one. Words a step: the allreduce's for all gradients.
    `ConfigError` on all ranks for settings that can't be built. Collective.
    """

    def __init__(
        self,
        allreduce: str = "auto",
        wire: str = "bf16",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        comm = _communicator(process_group)
        with raise_on_all_ranks(comm):
            config = AllreduceConfig(allreduce, wire)  # type: ignore[arg-type]
        self._allreduce = family.make(config.name, comm, config.wire)

    def reduce(self, bucket: torch.Tensor) -> None:
        """The mean over the ranks, in place."""
        self._allreduce(bucket, "mean")


class SparseState:
    """For `sparse_hook`: of each bucket the ranks exchange the largest elements, a share `sparse`
    of them (0.01: 1 %), with error feedback; or as a `SparseConfig` says.

    The first backward pass is exchanged densely, because DDP arranges its buckets anew after it.
    `process_group`: DDP's; None: the default one. Memory: one vector as large as the gradients, two
    with momentum correction. Where a gradient is not finite on some rank, its bucket becomes NaN on
    all. `ConfigError` on all ranks for settings that a bucket can't follow. Collective.
    """

    def __init__(
        self, sparse: float | SparseConfig, process_group: dist.ProcessGroup | None = None
    ) -> None:
        self._comm = _communicator(process_group)
        with raise_on_all_ranks(self._comm):
            self._config = sparse_config(sparse)
            _require_followed(self._config)
        self._first_pass = True
        self._gradients: dict[int, GradientBuffer] = {}  # by bucket
        self._reducers: dict[int, SparseReducer | None] = {}  # None: dense is faster

    def reduce(self, bucket: GradBucket) -> None:
        """The mean over the ranks of what they selected, in place."""
        flat = bucket.buffer()
        reducer = None if self._first_pass else self._reducer(bucket, flat)
        if reducer is None:
            self._comm.allreduce(flat, "mean")
        else:
            flat.div_(self._comm.size)
            reducer.slots.zero_()
            reducer.start()
            reducer.finish()
            if math.isnan(reducer.slots[0]):
                flat.fill_(math.nan)
        self._first_pass = self._first_pass and not bucket.is_last()

    def _reducer(self, bucket: GradBucket, flat: torch.Tensor) -> SparseReducer | None:
        """What looks after `bucket`, made at its first sparse exchange."""
        index = bucket.index()
        if index not in self._reducers:
            parameters = cast(list[torch.nn.Parameter], bucket.parameters())
            slots = torch.zeros(1, dtype=flat.dtype)
            self._gradients[index] = GradientBuffer(parameters, flat, slots)
            self._reducers[index] = self._made(self._gradients[index])
        if self._gradients[index].flat.data_ptr() != flat.data_ptr():
            raise CommunicationError(
                "DDP has arranged its buckets anew, and what was held back of their gradients "
                "can't follow; wrap the model again, with a new SparseState"
            )
        return self._reducers[index]

    def _made(self, gradients: GradientBuffer) -> SparseReducer | None:
        flat = gradients.flat
        if flat.dtype not in _SELECTED_FROM:
            raise ConfigError(
                f"gradients of {flat.dtype} can't be selected from; float32 and float64 can, or "
                "use allreduce_hook"
            )
        chosen = resolve(
            self._config, flat.numel(), self._comm, str(flat.dtype).removeprefix("torch.")
        )
        if chosen.allreduce == "none":
            return None
        names = [str(number) for number in range(len(gradients.parameters))]
        return SparseReducer(gradients, names, self._comm, chosen)


def allreduce_hook(state: AllreduceState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """See `AllreduceState`."""
    state.reduce(bucket.buffer())
    return _done(bucket)


def sparse_hook(state: SparseState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """See `SparseState`."""
    state.reduce(bucket)
    return _done(bucket)


def _done(bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def _communicator(process_group: dist.ProcessGroup | None) -> Communicator:
    group = dist.group.WORLD if process_group is None else process_group
    if not isinstance(group, MpiProcessGroup):
        raise CommunicationError(
            f"these hooks exchange over MPI, and the process group is {group}; import "
            'dist_ml.torch_backend, and begin with init_process_group("dist_ml")'
        )
    return group.comm


def _require_followed(config: SparseConfig) -> None:
    """`ConfigError` for what needs more than one bucket to be known."""
    for key, value, why in (
        ("densities", config.densities, "names parameters, which a bucket doesn't know"),
        ("clip_norm", config.clip_norm, "needs the norm of the whole gradient"),
        ("overlap", config.overlap, "isn't needed: DDP sends buckets during the backward pass"),
    ):
        if value:
            raise ConfigError(f"sparse.{key}={value} {why}; leave it out, or use DataParallel")
