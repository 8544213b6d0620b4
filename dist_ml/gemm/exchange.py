"""A planned redistribution, carried out: one alltoall."""

from collections.abc import Iterator

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.pieces import Piece
from dist_ml.gemm.redistribution import Overlap, overlaps


def exchange(
    comm: Communicator,
    source: tuple[Layout, torch.Tensor],
    target: tuple[Layout, torch.Tensor],
) -> None:
    """Fill the target's storage from the source's, both this rank's. Collective.

    Packs what goes to each rank, exchanges, unpacks; what stays is copied once, straight to its
    place. Words: `redistribution.send_words` and `receive_words`.
    """
    (source_layout, source_storage), (target_layout, target_storage) = source, target
    rank = comm.rank
    outgoing = [
        overlaps(source_layout, target_layout, rank, receiver) for receiver in range(comm.size)
    ]
    incoming = [overlaps(source_layout, target_layout, sender, rank) for sender in range(comm.size)]
    for overlap in outgoing[rank]:
        piece_view(target_storage, overlap.target).copy_(piece_view(source_storage, overlap.source))
    outgoing[rank], incoming[rank] = [], []
    send_counts, receive_counts = _counts(outgoing), _counts(incoming)
    sent = torch.empty(sum(send_counts), dtype=source_storage.dtype)
    received = torch.empty(sum(receive_counts), dtype=source_storage.dtype)
    for overlap, packed in _packed(outgoing, sent):
        packed.copy_(piece_view(source_storage, overlap.source))
    comm.alltoall(sent, received, send_counts, receive_counts)
    for overlap, packed in _packed(incoming, received):
        piece_view(target_storage, overlap.target).copy_(packed)


def _counts(by_rank: list[list[Overlap]]) -> list[int]:
    return [sum(overlap.size for overlap in found) for found in by_rank]


def _packed(
    by_rank: list[list[Overlap]], buffer: torch.Tensor
) -> Iterator[tuple[Overlap, torch.Tensor]]:
    """Each overlap with its place in the packed buffer, in the order that both sides share."""
    start = 0
    for overlap in (overlap for found in by_rank for overlap in found):
        shape = overlap.source.rows.size, overlap.source.cols.size
        yield overlap, buffer[start : start + overlap.size].view(shape)
        start += overlap.size


def piece_view(storage: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The 2-D view of one piece of a rank's storage."""
    shape = piece.rows.size, piece.cols.size
    return storage.as_strided(
        shape, (piece.row_stride, piece.col_stride), storage.storage_offset() + piece.offset
    )
