"""The MPI library's own allreduce: the naive reference of the family, and what the others must
beat.
"""

import numpy as np

from dist_ml.comm.allreduce.base import Allreduce, Op
from dist_ml.comm.allreduce.wire import Wire, WireName
from dist_ml.comm.buffer import Array, Tensor
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Words, allreduce_words
from dist_ml.errors import ConfigError
from dist_ml.partition import block


class Native(Allreduce):
    """Any dtype that `Communicator.allreduce` takes. Counted as the direct algorithm: the library's
    own can't be seen.
    """

    name = "native"

    def __init__(self, comm: Communicator, wire: WireName = "fp32") -> None:
        super().__init__(comm)
        if Wire(wire).name != "fp32":
            raise ConfigError(
                f"wire={wire}: MPI's own allreduce sends numbers as they are; use allreduce=ring, "
                "or wire=fp32"
            )

    def __call__(self, x: Tensor, op: Op = "sum") -> None:
        self.comm.allreduce(x, op)

    def start(self, x: Tensor, op: Op = "sum") -> Request:
        return self.comm.iallreduce(x, op)

    def words(self, n: int, item_bytes: int = 4) -> Words:  # noqa: ARG002
        if self.comm.size == 1:
            return Words(0, 0, 0)
        return allreduce_words(n, block(n, self.comm.size, self.comm.rank).size, self.comm.size)


def naive(comm: Communicator, array: Array, op: Op) -> None:
    """The reference of the others in their tests: every rank receives everything and adds it up, in
    the order of the ranks.
    """
    everything = np.empty((comm.size, array.size), dtype=array.dtype)
    comm.allgather(array, everything, [array.size] * comm.size)
    total = everything[0].copy()
    for row in everything[1:]:
        total += row
    array[...] = total / comm.size if op == "mean" else total
