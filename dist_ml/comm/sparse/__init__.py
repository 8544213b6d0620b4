"""Allreduces of sparse vectors: k of n elements a rank, selected by magnitude, in fewer words than
the dense sum.
"""

from dist_ml.comm.sparse.base import Settings, SparseAllreduce, SparseSum
from dist_ml.comm.sparse.entries import Entries
from dist_ml.comm.sparse.family import SPARSE_ALLREDUCES, Member, check, costs, fastest, make

__all__ = [
    "SPARSE_ALLREDUCES",
    "Entries",
    "Member",
    "Settings",
    "SparseAllreduce",
    "SparseSum",
    "check",
    "costs",
    "fastest",
    "make",
]
