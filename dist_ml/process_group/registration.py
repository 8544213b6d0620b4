"""The backend's name in torch."""

import os
from typing import Any

import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError
from dist_ml.process_group.process_group import NAME, MpiProcessGroup
from dist_ml.process_group.rendezvous import meeting_place

_LARGEST_TAG = 32_767  # that every MPI has


def register(world: Communicator) -> None:
    """Make `init_process_group("dist_ml")` one over the ranks of `world`, with nothing else set.
    Collective, once a process.

    Groups are made by their members alone. `CommunicationError` for a group of more ranks.
    """

    def create(options: Any, _: Any) -> MpiProcessGroup:
        if options.group_size > world.size:
            raise CommunicationError(
                f"a process group of {options.group_size} ranks, but MPI started {world.size}; "
                "start as many, and leave world_size to MPI"
            )
        members = list(options.global_ranks_in_group) or list(range(world.size))
        tag = sum(options.group_id.encode()) % _LARGEST_TAG
        return MpiProcessGroup(world.create_group(members, tag, axis="torch"), options.timeout)

    dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu"])
    # what DeviceMesh and others ask for; without it gloo stays the processor's
    dist.Backend.default_device_backend_map["cpu"] = NAME
    _offer_rendezvous(world)


def _offer_rendezvous(world: Communicator) -> None:
    """What torch's `env://` asks the environment for, where nobody else has said it."""
    if "MASTER_ADDR" in os.environ and "RANK" in os.environ:
        return
    address, port = meeting_place(world)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size))
