"""Measures what ranks of a node take to reach each other, between pieces of work: who exchanges in
a step has just computed, has waited for others, and where ranks outnumber cores waits for one.
"""

from functools import partial

import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.plan.curves import Curve
from dist_ml.plan.timing import between_work

_BYTES = (64, 4096, 1 << 16, 1 << 20, 1 << 23, 1 << 25)


def measure_allreduces(comm: Communicator, name: str) -> dict[int, Curve]:
    """Of the algorithm `name`, over bytes, by ranks: pairs, all pairs at once, and so on up to all
    ranks.
    """
    found = {}
    for size in range(2, comm.size + 1):
        if comm.size % size == 0:
            group = comm.split(comm.rank // size, comm.rank)
            assert group is not None
            member = family.make(name, group)
            seconds = {}
            for num_bytes in _BYTES:
                x = member.allocate(num_bytes // 4, torch.float32).zero_()
                seconds[float(num_bytes)] = between_work(comm, partial(member, x))
            member.free()
            group.free()
            found[size] = Curve.through(seconds)
    return found


def measure_messages(comm: Communicator) -> Curve | None:
    """From an even rank to the next one, all such pairs at once; the receiver waits meanwhile."""
    if comm.size == 1:
        return None
    pair = comm.split(comm.rank // 2, comm.rank)
    assert pair is not None
    found = {}
    for num_bytes in _BYTES:
        x = torch.zeros(num_bytes // 4)
        there_and_back = partial(_there_and_back, pair, x)
        found[float(num_bytes)] = between_work(comm, there_and_back, (True, False)) / 2
    pair.free()
    return Curve.through(found)


def _there_and_back(pair: Communicator, x: torch.Tensor) -> None:
    if pair.size == 1:  # the last of an odd number
        return
    if pair.rank == 0:
        pair.send(x, 1)
        pair.receive(x, 1)
    else:
        pair.receive(x, 0)
        pair.send(x, 0)
