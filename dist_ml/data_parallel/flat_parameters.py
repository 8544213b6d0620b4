"""All parameters in one buffer, so that one collective can move them."""

from collections.abc import Iterable

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.partition import block


class FlatParameters:
    """Each parameter's data is a view into `flat`; `shard` is this rank's part, as one
    parameter.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], comm: Communicator) -> None:
        self._comm = comm
        self._parameters = list(parameters)
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        self.range = block(self.flat.numel(), comm.size, comm.rank)
        start = 0
        for parameter in self._parameters:
            parameter.data = self.flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        self.shard = torch.nn.Parameter(self.flat[self.range.slice])

    def gather(self) -> None:
        """Every rank's updated shard to all ranks, in place. Words: n(P-1)/P."""
        self._comm.allgather(None, self.flat)
