"""Local steps: ranks take optimizer steps of their own and agree on parameters now and then,
instead of on every gradient.

Periodic averaging (local SGD; Stich, ICLR 2019, algorithm 1): every `period` steps all parameters
are averaged, and waited for. Optimizer state is averaged with them, so that ranks don't end a run
with different momenta. `daso.py` is the asynchronous kind.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.config.allreduce import DataParallelConfig
from dist_ml.data_parallel.flat_parameters import FlatParameters
from dist_ml.data_parallel.flat_state import FlatState, Rows


class ParameterAverager(ABC):
    """Brings the ranks' parameters together. `allreduce` runs over all ranks, on a communicator
    that nobody else uses.

    `rows` tells the replicas apart: all ranks here.

    Whether a step is taken or skipped must be the same on all ranks, since steps are counted.
    """

    def __init__(
        self, parameters: FlatParameters, optimizer: torch.optim.Optimizer, allreduce: Allreduce
    ) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._allreduce = allreduce
        self.rows = Rows(allreduce.comm.rank, allreduce.comm.size, "mean")
        self.steps = 0

    @abstractmethod
    def after_update(self, loss: float) -> None:
        """An optimizer step was taken, at a mean `loss` that is the same on all ranks.
        Collective.
        """

    def average(self) -> None:
        """All ranks' parameters become their mean. Words: the algorithm's for n."""
        self._allreduce(self._parameters.flat, "mean")

    def average_state(self) -> None:
        """The optimizer's state likewise, tensor by tensor."""
        for state in self._optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 0:
                    self._allreduce(value, "mean")

    def diagnostics(self) -> dict[str, float]:
        return {}

    def tensors(self) -> list[FlatState]:
        """What is under way, in place."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """The rest that the next steps depend on besides parameters and optimizer, in numbers that
        JSON takes. Collective.
        """
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def close(self) -> None:
        """Wait for what is under way, so that a run may end before its last step, and give the
        allreduce's communicator back. Collective.
        """
        self._allreduce.free()
        self._allreduce.comm.free()


class PeriodicAverager(ParameterAverager):
    """Local SGD; the naive reference of DASO."""

    def __init__(
        self,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        allreduce: Allreduce,
        config: DataParallelConfig,
    ) -> None:
        super().__init__(parameters, optimizer, allreduce)
        self._period = config.period

    def after_update(self, loss: float) -> None:  # noqa: ARG002
        self.steps += 1
        if self.steps % self._period == 0:
            self.average()
            self.average_state()
