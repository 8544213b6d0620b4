"""Who writes which box: computed by every rank from what all ranks hold, so without another
message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_ml.checkpoint import tensor_file
from dist_ml.checkpoint.boxes import fill, num_elements, size_of
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.tensor_file import Entry, Layout
from dist_ml.placement import Region, whole


@dataclass(frozen=True)
class HeldBox:
    """A piece without its values, as ranks tell it each other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    region: Region

    @property
    def entry(self) -> Entry:
        """In a file it has its name, and its region where it is not the whole."""
        is_whole = self.region == whole(self.shape)
        sides = ",".join(f"{side.start}:{side.stop}" for side in self.region)
        key = self.name if is_whole else f"{self.name}[{sides}]"
        return Entry(key, self.dtype, size_of(self.region))


@dataclass(frozen=True)
class WriterPlan:
    """One rank's file. `positions[i]` is where box i stands among the rank's pieces."""

    boxes: tuple[HeldBox, ...]
    positions: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        return tensor_file.layout([box.entry for box in self.boxes])

    @property
    def num_bytes(self) -> int:
        """Of values, without the header."""
        return sum(box.entry.num_bytes for box in self.boxes)


def held_box(piece: Piece) -> HeldBox:
    """`DataError` for a dtype that checkpoints don't hold."""
    size, name = size_of(piece.region), piece.name
    assert tuple(piece.values.shape) == size, f"{name}: {tuple(piece.values.shape)} for {size}"
    dtype = tensor_file.dtype_name(piece.values.dtype)
    return HeldBox(name, dtype, tuple(piece.shape), piece.region)


def plan(held: Sequence[Sequence[HeldBox]]) -> list[WriterPlan]:
    """Each rank's file, of what each rank holds. A box that several hold is written by the one of
    them that has least to write, after those that fewer hold, and larger ones; an empty box by
    nobody.

    Wider dtypes lie first in a file, so that all values are aligned.
    """
    _check(held)
    holders: dict[HeldBox, dict[int, int]] = {}  # box: rank: position
    for rank, boxes in enumerate(held):
        for position, box in enumerate(boxes):
            if num_elements(box.region):
                holders.setdefault(box, {}).setdefault(rank, position)
    load = [0] * len(held)
    chosen: list[list[tuple[HeldBox, int]]] = [[] for _ in held]
    for box in sorted(holders, key=lambda box: (len(holders[box]), -box.entry.num_bytes)):
        rank = min(holders[box], key=lambda rank: (load[rank], rank))
        load[rank] += box.entry.num_bytes
        chosen[rank].append((box, holders[box][rank]))
    return [_writer(own) for own in chosen]


def _writer(chosen: Iterable[tuple[HeldBox, int]]) -> WriterPlan:
    def width_then_position(item: tuple[HeldBox, int]) -> tuple[int, int]:
        return -tensor_file.DTYPES[item[0].dtype].itemsize, item[1]

    ordered = sorted(chosen, key=width_then_position)
    return WriterPlan(tuple(box for box, _ in ordered), tuple(place for _, place in ordered))


def _check(held: Sequence[Sequence[HeldBox]]) -> None:
    """Every tensor must be there whole, with one shape and dtype."""
    tensors: dict[str, tuple[HeldBox, set[Region]]] = {}
    for box in (box for boxes in held for box in boxes):
        first, regions = tensors.setdefault(box.name, (box, set()))
        assert (first.shape, first.dtype) == (box.shape, box.dtype), f"{first} and {box}"
        regions.add(box.region)
    for name, (first, regions) in tensors.items():
        inside = all(
            0 <= side.start <= side.stop <= n
            for region in regions
            for side, n in zip(region, first.shape, strict=True)
        )
        filled = inside and fill(frozenset(regions), whole(first.shape))
        assert filled, f"{name} of {list(first.shape)} isn't whole in boxes {sorted(regions)}"
