"""Gradients of local steps: they stay inside a node, or a rank, and only slots cross the rest."""

from dist_ml.comm.allreduce.base import Allreduce
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reduced_gradients import Local
from dist_ml.data_parallel.reducer import GradientReducer


class LocalReducer(GradientReducer):
    """Sums gradients over `intra_node` (None: over nobody; else on a communicator that nobody else
    uses) and slots over all of `comm`.

    A rank's gradient is scaled for a sum over all ranks, so a sum over fewer is scaled up to match.
    Words between nodes: the slots'.
    """

    def __init__(
        self, gradients: FlatGradients, comm: Communicator, intra_node: Allreduce | None
    ) -> None:
        self._gradients = gradients
        self._comm = comm
        self._intra_node = intra_node
        self.slots = gradients.slots

    def begin(self) -> None:
        self._gradients.begin()

    def finish(self) -> Local:
        self._gradients.complete()
        summed = 1
        if self._intra_node is not None:
            self._intra_node(self._gradients.flat)
            summed = self._intra_node.comm.size
        self._gradients.flat.mul_(self._comm.size / summed)
        self._comm.allreduce(self.slots)
        return Local(self._gradients.flat, self.slots)

    def close(self) -> None:
        if self._intra_node is not None:
            self._intra_node.free()
            self._intra_node.comm.free()
