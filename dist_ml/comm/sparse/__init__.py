"""Allreduces of sparse vectors: k of n elements a rank, selected by magnitude, in fewer words than the dense sum."""

from dist_ml.comm.sparse.allgather import AllgatherSum, DenseSum
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.exchange import Settings, SparseAllreduce, SparseSum
from dist_ml.comm.sparse.gtopk import GlobalTopk
from dist_ml.comm.sparse.oktopk import OkTopk
from dist_ml.comm.sparse.recursive_doubling import RecursiveDoubling
from dist_ml.comm.sparse.spardl import Spardl
from dist_ml.comm.sparse.split import DenseSplitAllgather, SplitAllgather

SPARSE_ALLREDUCES: dict[str, type] = {
    "dense": DenseSum,
    "allgather": AllgatherSum,
    "gtopk": GlobalTopk,
    "recursive_doubling": RecursiveDoubling,
    "split_allgather": SplitAllgather,
    "dense_split_allgather": DenseSplitAllgather,
    "oktopk": OkTopk,
    "spardl": Spardl,
}

__all__ = ["SPARSE_ALLREDUCES", "Entries", "Settings", "SparseAllreduce", "SparseSum"]
