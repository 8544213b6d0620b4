"""States that are cut over ranks in several ways, for the tests of checkpoints."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from dist_ml.checkpoint.boxes import boxes_of_range, slices_within
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.reader import Checkpoint
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.partition import Range, block
from dist_ml.placement import Region, whole
from tests.thread_world import run_ranks

State: TypeAlias = Mapping[str, torch.Tensor]
# What rank `rank` of `size` holds of a tensor of this shape.
Cut: TypeAlias = Callable[[tuple[int, ...], int, int], list[Region]]


def copies(shape: tuple[int, ...], rank: int, size: int) -> list[Region]:
    """Every rank has all."""
    return [whole(shape)]


def last_dim(shape: tuple[int, ...], rank: int, size: int) -> list[Region]:
    """The last dim over the ranks; with fewer elements than ranks, some have none."""
    return [(*whole(shape[:-1]), block(shape[-1], size, rank))] if shape else [()]


def flat(shape: tuple[int, ...], rank: int, size: int) -> list[Region]:
    """A balanced share of the row-major elements, as ZeRO has it."""
    part = block(torch.Size(shape).numel(), size, rank)
    return boxes_of_range(shape, part.start, part.stop) or [(Range(0, 0),) * len(shape)]


def one_owner(shape: tuple[int, ...], rank: int, size: int) -> list[Region]:
    """All of it on one rank, which depends on the shape, as in a pipeline."""
    return [whole(shape)] if sum(shape) % size == rank else []


CUTS: dict[str, Cut] = {
    "copies": copies,
    "last_dim": last_dim,
    "flat": flat,
    "one_owner": one_owner,
}


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of every dtype that training has, of none to four dims, and an empty one."""
    chance = torch.Generator().manual_seed(seed)
    return {
        "model/weight": torch.randn(5, 7, generator=chance),
        "model/bias": torch.randn(7, generator=chance, dtype=torch.float64),
        "model/conv": torch.randn(3, 2, 3, 2, generator=chance).bfloat16(),
        "optimizer/half": torch.randn(2, 3, generator=chance).half(),
        "optimizer/step": torch.tensor(12345678901 + seed),
        "optimizer/mask": torch.rand(9, generator=chance) < 0.5,
        "residual/none": torch.empty(0, 4),
    }


def pieces(of: State, cut: Cut, rank: int, size: int) -> list[Piece]:
    return [
        Piece(name, tuple(tensor.shape), region, values_of(tensor, region))
        for name, tensor in of.items()
        for region in cut(tuple(tensor.shape), rank, size)
    ]


def values_of(tensor: torch.Tensor, region: Region) -> torch.Tensor:
    return tensor[slices_within(region, whole(tensor.shape))]


def save_from(
    of: State, folder: Path, step: int = 1, size: int = 1, cut: Cut = copies, **options: object
) -> Path:
    """Save on `size` ranks that are threads."""

    def body(comm: Communicator) -> Path:
        own = pieces(of, cut, comm.rank, comm.size)
        return save(folder, step, own, {"seed": 3}, comm, **options)  # type: ignore[arg-type]

    return run_ranks(size, body)[0]


def holds(found: Checkpoint, of: State) -> bool:
    """Has the checkpoint exactly these tensors, bit for bit?"""
    return list(found.names) == list(of) and all(
        torch.equal(found.read(name, whole(tensor.shape)), tensor) for name, tensor in of.items()
    )


class Killed(BaseException):
    """The process ends here."""


class KilledFiles(Files):
    """Ends at the `at`-th operation on `disk`, a write in its middle, and makes none after it."""

    def __init__(self, at: int, disk: Files | None = None) -> None:
        self.at, self.disk, self.count = at, disk or Files(), 0

    def _next(self) -> None:
        self.count += 1
        if self.count > self.at:
            raise Killed

    def make_folder(self, path: Path) -> None:
        self._next()
        self.disk.make_folder(path)

    def create(self, path: Path) -> int:
        self._next()
        return self.disk.create(path)

    def write(self, descriptor: int, data: memoryview) -> None:
        if self.count == self.at:
            self.disk.write(descriptor, data[: len(data) // 2])
        self._next()
        self.disk.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._next()
        self.disk.sync(descriptor)

    def close(self, descriptor: int) -> None:
        self.disk.close(descriptor)

    def sync_folder(self, path: Path) -> None:
        self._next()
        self.disk.sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._next()
        self.disk.rename(source, target)

    def remove_file(self, path: Path) -> None:
        self._next()
        self.disk.remove_file(path)

    def remove_folder(self, path: Path) -> None:
        self._next()
        self.disk.remove_folder(path)


class FullDisk(Files):
    """Has no room for the `at`-th thing that wants some, nor for any after it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def make_folder(self, path: Path) -> None:
        self._take()
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._take()
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> None:
        self._take()
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._take()
        super().sync(descriptor)

    def sync_folder(self, path: Path) -> None:
        self._take()
        super().sync_folder(path)


def corner(region: Region) -> Region:
    """A part that starts and ends within the region, where it is large enough."""
    return tuple(Range(min(1, side.stop), max(min(1, side.stop), side.stop - 1)) for side in region)
