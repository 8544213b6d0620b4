"""How far the sum of selected parts is from the selected part of the sum."""

import numpy as np

from dist_ml.comm.buffer import Array
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.base import SparseSum
from dist_ml.comm.sparse.entries import largest_mask
from dist_ml.data_parallel.sparse_part import SparsePart


class XiEstimate:
    """The xi of the convergence analysis of top-k (Alistarh et al., arXiv 1809.10505, assumption
    1): small is good.

    xi = |Topk(mean of accumulated) - result / P| / |mean of accumulated|, over the elements of one
    bucket, with k the entries of the result. It needs the dense sum, so it is taken every `period`
    steps (0: never) at the price of a dense allreduce.
    """

    def __init__(self, comm: Communicator, period: int) -> None:
        self._comm = comm
        self._period = period
        self._mean: Array | None = None
        self.last: dict[str, float] = {}

    def before(self, step: int, part: SparsePart) -> None:
        """Sum everything that could be sent. Collective."""
        self._mean = None
        if self._period and step % self._period == 0:
            self._mean = part.accumulated()
            with part.comm.traffic.labelled("diagnostics"):
                part.comm.allreduce(self._mean, "mean")

    def after(self, total: SparseSum, part: SparsePart) -> None:
        if self._mean is None:
            return
        best = np.where(largest_mask(np.abs(self._mean), total.nonzeros()), self._mean, 0)
        difference = np.linalg.norm(best - total.to_dense(self._mean.size) / part.comm.size)
        self.last = {"xi": float(difference / max(float(np.linalg.norm(self._mean)), 1e-30))}
        self._mean = None
