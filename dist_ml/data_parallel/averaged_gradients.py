"""Parameters of one dtype whose gradients are the ranks' mean once a backward pass is over,
whatever their user does with `.grad` in between.
"""

from collections.abc import Callable, Mapping

import torch

from dist_ml.comm.buffer import is_strided
from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.gradient_exchange import dense_or_sparse
from dist_ml.data_parallel.gradients import call_when_final
from dist_ml.errors import CommunicationError


class AveragedGradients:
    """The gradients of `named`, exchanged by one reducer.

        begins()     asked at each final gradient: is this pass exchanged?
        begin()      the pass's first gradient is final
        finish()     the pass is over: each `.grad` is a view of the reduced buffer

    A `.grad` that autograd or the user has replaced (`zero_grad(set_to_none=True)`) is copied into
    its place, divided by the number of ranks on the way: no pass of its own over the gradient.
    """

    def __init__(
        self,
        named: Mapping[str, torch.nn.Parameter],
        comm: Communicator,
        allreduce: AllreduceConfig,
        sparse: SparseConfig,
        average: bool,
        begins: Callable[[], bool],
    ) -> None:
        self._parameters = list(named.values())
        self._comm = comm
        self._factor = 1.0 / comm.size if average else 1.0
        self._begins = begins
        self._taken = [False] * len(self._parameters)
        # before the reducer's own: a gradient is in its place when its bucket is sent
        call_when_final(self._parameters, self._final)
        self._reducer = dense_or_sparse(named, comm, allreduce, sparse, attach_sinks=False)
        self._views = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None

    def begin(self) -> None:
        self._taken = [False] * len(self._parameters)
        self._reducer.start()

    def finish(self, find_unused: bool) -> None:
        unused = self._unused_everywhere() if find_unused else ()
        for index, taken in enumerate(self._taken):
            if not taken:  # no gradient in this pass, perhaps one from passes without exchange
                self._take(index)
        self._reducer.finish()
        for index, parameter in enumerate(self._parameters):
            parameter.grad = None if index in unused else self._views[index]

    def close(self) -> None:
        self._reducer.close()

    def _final(self, index: int) -> None:
        if self._begins():
            self._taken[index] = True
            self._take(index)

    def _take(self, index: int) -> None:
        """The parameter's gradient as it is into its place in the buffer, scaled."""
        gradient, view = self._parameters[index].grad, self._views[index]
        assert view is not None
        if gradient is None:
            view.zero_()
        elif gradient is view:
            view.mul_(self._factor)
        elif not is_strided(gradient):
            raise CommunicationError(
                f"a gradient is a {gradient.layout} tensor, and dense ones are exchanged here; use "
                "sparse=False in nn.Embedding, or DistributedDataParallel over dist_ml's backend"
            )
        else:
            torch.mul(gradient.detach(), self._factor, out=view)
            self._parameters[index].grad = view

    def _unused_everywhere(self) -> set[int]:
        """Parameters for which no rank has a gradient. Collective."""
        held = torch.tensor([p.grad is not None for p in self._parameters], dtype=torch.uint8)
        self._comm.allreduce(held, "max")
        return set((held == 0).nonzero().flatten().tolist())
