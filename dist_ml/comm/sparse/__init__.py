"""Allreduces of sparse vectors: k of n elements a rank, selected by magnitude, in fewer words than
the dense sum.
"""

from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.exchange import Settings, SparseAllreduce, SparseSum
from dist_ml.comm.sparse.family import SPARSE_ALLREDUCES, fastest, make

__all__ = [
    "SPARSE_ALLREDUCES",
    "Entries",
    "Settings",
    "SparseAllreduce",
    "SparseSum",
    "fastest",
    "make",
]
