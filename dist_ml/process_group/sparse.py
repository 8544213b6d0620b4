"""Sums of torch's sparse tensors, which DDP makes of an embedding's gradients (`sparse=True`)."""

from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError
from dist_ml.process_group.reductions import reduction
from dist_ml.process_group.tensors import moved, values


def allreduce_sparse(tensor: torch.Tensor, op: Any, comm: Communicator) -> None:
    """Sum, or average, a COO tensor over the ranks, in place; entries may lie anywhere.

    Every rank gets all ranks' entries: with n on each, (P-1) n values and as many indices a sparse
    dim. `CommunicationError` on all ranks where shapes differ, and for other reductions.
    """
    how = reduction(op, tensor.dtype)
    if tensor.layout is not torch.sparse_coo or how.op not in ("sum", "mean") or how.fold:
        raise CommunicationError(
            f"{op} of a tensor of layout {tensor.layout} can't be made; SUM and AVG of sparse_coo "
            "can, or pass tensor.to_dense()"
        )
    own = tensor.detach().coalesce()
    shape = (tuple(own.shape), own.sparse_dim())
    told = comm.allgather_objects((own._nnz(), shape))
    if any(other != shape for _, other in told):
        raise CommunicationError(
            f"ranks bring sparse tensors of different (shape, sparse dims): {[s for _, s in told]}"
        )
    counts = [count for count, _ in told]
    places = _gathered(own.indices().T, counts, comm)
    total = torch.sparse_coo_tensor(
        places.T, _gathered(own.values(), counts, comm), own.shape
    ).coalesce()
    factor = how.factor if how.factor is not None else 1 / comm.size if how.op == "mean" else None
    with torch.no_grad():  # a detached tensor would keep its own entries
        tensor.copy_(total if factor is None else total * factor)


def _gathered(rows: torch.Tensor, counts: list[int], comm: Communicator) -> torch.Tensor:
    """All ranks' rows; rank r brings counts[r] of them."""
    everything = rows.new_empty(sum(counts), *rows.shape[1:])
    row_bytes = rows.shape[1:].numel() * rows.element_size()
    comm.allgather(
        moved(values(rows)), moved(values(everything)), [count * row_bytes for count in counts]
    )
    return everything
