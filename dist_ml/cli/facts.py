"""What `dist-ml doctor` looks at, on every rank: plain values that can be gathered, printed and
tested with.
"""

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_ml.comm import mpi
from dist_ml.comm.buffer import Array
from dist_ml.errors import DistMLError
from dist_ml.launch import stacks

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator

SHARED_MEMORY = "/dev/shm"
# A raw bfloat16 sum is not among those tried: it ends the process on MPICH.
RAW_SUMS = (np.float32, np.float64, np.float16, np.int32, np.int64)
OUR_SUMS = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@dataclass(frozen=True)
class RankFacts:
    """One rank's view."""

    rank: int
    host: str
    cores: frozenset[int]  # that this rank may run on
    host_cores: int
    threads: int  # of torch
    shared_memory_bytes: int | None  # the size of /dev/shm; None where there is none
    shared_memory_free_bytes: int | None
    vendor: str | None  # of the MPI library; None without MPI
    standard: str | None
    thread_level: str | None


@dataclass(frozen=True)
class WorldFacts:
    """All ranks' views, and what they tried together. The same on all ranks."""

    ranks: tuple[RankFacts, ...]
    launched_size: int | None  # what the launcher said
    node_sizes: tuple[int, ...] = ()
    raw_sums: Mapping[str, bool] = field(default_factory=dict)  # by dtype: was the sum right?
    our_sums: Mapping[str, bool] = field(default_factory=dict)
    # what went wrong with a window of shared memory; empty when nothing did
    shared_window: str = ""
    singletons: str = ""  # the message when ranks found no world


def rank_facts(rank: int, with_mpi: bool) -> RankFacts:
    """What can be seen without talking to others."""
    library = mpi.library_facts() if with_mpi else {}
    shared = shutil.disk_usage(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    affinity = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return RankFacts(
        rank=rank,
        host=socket.gethostname(),
        cores=frozenset(affinity),
        host_cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        shared_memory_bytes=shared.total if shared else None,
        shared_memory_free_bytes=shared.free if shared else None,
        vendor=library.get("vendor"),
        standard=library.get("standard"),
        thread_level=library.get("thread_level"),
    )


def lone_facts(singletons: str) -> WorldFacts:
    """When no world could be made."""
    alone = rank_facts(stacks.rank(os.environ), with_mpi=False)
    return WorldFacts((alone,), mpi.launched_size(), singletons=singletons)


def world_facts(world: "Communicator") -> WorldFacts:
    """Collective; communicates."""
    with_mpi = world.transport.flavour != "loopback"
    ranks = tuple(world.allgather_objects(rank_facts(world.rank, with_mpi)))
    node = world.split_by_node()
    leaders = world.allgather_objects(node.size if node.rank == 0 else None)
    facts = WorldFacts(
        ranks=ranks,
        launched_size=mpi.launched_size(),
        node_sizes=tuple(size for size in leaders if size is not None),
        raw_sums={
            np.dtype(dtype).name: _on_all(world, _raw_sum_is_right(world, dtype))
            for dtype in RAW_SUMS
        }
        if with_mpi
        else {},
        our_sums={
            str(dtype).removeprefix("torch."): _on_all(world, _our_sum_is_right(world, dtype))
            for dtype in OUR_SUMS
        },
        shared_window=_shared_window(world, node) if with_mpi else "",
    )
    node.free()
    return facts


def _on_all(world: "Communicator", right: bool) -> bool:
    return all(world.allgather_objects(right))


def _raw_sum_is_right(world: "Communicator", dtype: type) -> bool:
    ones: Array = np.ones(3, dtype)
    try:
        mpi.raw_allreduce(world, ones)()
    except (
        Exception
    ):  # mpi4py's own, of the MPI's own kinds: whatever it is, this dtype can't be summed
        return False
    return bool((ones == world.size).all())


def _our_sum_is_right(world: "Communicator", dtype: torch.dtype) -> bool:
    ones = torch.ones(3, dtype=dtype)
    logical = dtype == torch.bool
    try:
        world.allreduce(ones, "max" if logical else "sum")
    except DistMLError:
        return False
    return bool((ones == (True if logical else world.size)).all())


def _shared_window(world: "Communicator", node: "Communicator") -> str:
    """Write into a window, and read what the neighbour on this node wrote."""
    problem = ""
    try:
        memory = node.transport.allocate_shared(8 * node.size)
        cells = memory.array.view(np.int64)
        cells[node.rank] = node.rank + 1
        node.barrier()
        if (cells != np.arange(1, node.size + 1)).any():
            problem = "ranks of one node read other values than were written"
        node.barrier()
        memory.free()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return next(filter(None, world.allgather_objects(problem)), "")
