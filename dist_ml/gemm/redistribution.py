"""Planned redistribution between any two layouts: who sends what to whom, as a value; words are
stated before anything moves.

Every element goes once, from one owner to each rank that needs it and does not hold it. Where the
source holds replicas, a rank takes from the replica on its own side of the grid, so an element that
it holds already never moves.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from dist_ml.gemm.layout import Layout
from dist_ml.gemm.pieces import Piece
from dist_ml.partition import Range


class Overlap(NamedTuple):
    """A rectangle that one rank's storage holds and another's is to hold: its place in both."""

    source: Piece
    target: Piece

    @property
    def size(self) -> int:
        return self.source.size


def overlaps(source: Layout, target: Layout, sender: int, receiver: int) -> list[Overlap]:
    """What `sender` gives `receiver` (which may be itself), in the order in which both pack it."""
    if (
        sender >= source.num_ranks
        or receiver >= target.num_ranks
        or not _supplies(source, sender, receiver)
    ):
        return []
    return _intersect(source.pieces(sender), target.pieces(receiver))


def send_words(source: Layout, target: Layout, rank: int, ranks: int) -> list[int]:
    """Words that `rank` sends to each of `ranks` ranks (to itself: what it copies)."""
    return [
        sum(o.size for o in overlaps(source, target, rank, receiver)) for receiver in range(ranks)
    ]


def receive_words(source: Layout, target: Layout, rank: int, ranks: int) -> list[int]:
    """Words that `rank` receives from each of `ranks` ranks (from itself: what it copies)."""
    return [sum(o.size for o in overlaps(source, target, sender, rank)) for sender in range(ranks)]


def moved_words(source: Layout, target: Layout) -> int:
    """Words over all ranks: the number of (element, new owner) pairs where the new owner did not
    hold the element.
    """
    ranks = max(source.num_ranks, target.num_ranks)
    if source == target:
        return 0
    return sum(
        sum(words) - words[rank]
        for rank in range(ranks)
        for words in [receive_words(source, target, rank, ranks)]
    )


def _supplies(source: Layout, sender: int, receiver: int) -> bool:
    """Is `sender` in the set of replicas that `receiver` takes from: its own coordinates along the
    replica axes, or the first?
    """
    axes = source.replica_axes
    if not axes:
        return True
    mine = source.coordinates(sender)
    theirs = (
        source.coordinates(receiver) if receiver < source.num_ranks else (0,) * len(source.grid)
    )
    return all(mine[axis] == theirs[axis] for axis in axes)


def _intersect(source: Sequence[Piece], target: Sequence[Piece]) -> list[Overlap]:
    """All common rectangles. Pieces are grouped by their rows, so that products of many blocks cost
    rows + columns, not products.
    """
    source_rows, target_rows = _by_rows(source), _by_rows(target)
    found = []
    for rows_s, pieces_s in source_rows.items():
        for rows_t, pieces_t in target_rows.items():
            rows = rows_s.intersect(rows_t)
            if rows.size:
                found += [
                    Overlap(_part(s, rows, cols), _part(t, rows, cols))
                    for s in pieces_s
                    for t in pieces_t
                    for cols in [s.cols.intersect(t.cols)]
                    if cols.size
                ]
    return found


def _by_rows(pieces: Sequence[Piece]) -> dict[Range, list[Piece]]:
    groups: dict[Range, list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.rows].append(piece)
    return groups


def _part(piece: Piece, rows: Range, cols: Range) -> Piece:
    offset = (
        piece.offset
        + (rows.start - piece.rows.start) * piece.row_stride
        + (cols.start - piece.cols.start) * piece.col_stride
    )
    return Piece(rows, cols, offset, piece.row_stride, piece.col_stride)
