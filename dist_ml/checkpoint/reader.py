"""Reading any box of any tensor, whatever ranks wrote it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_ml.checkpoint import folder as folders
from dist_ml.checkpoint.box_file import BoxFiles
from dist_ml.checkpoint.boxes import intersection, num_elements, size_of, slices_within
from dist_ml.checkpoint.index import Index, StoredTensor
from dist_ml.checkpoint.tensor_file import DTYPES
from dist_ml.checkpoint.verify import check_files
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DamageError, DataError
from dist_ml.placement import Region


class Damaged(NamedTuple):
    """A checkpoint that isn't what was written, and what differs."""

    path: Path
    problem: str


class Checkpoint:
    """A committed checkpoint, opened by one rank. `header` is what its writer gave; `passed_over`
    are the newer ones that `newest` found damaged.
    """

    def __init__(self, path: Path, index: Index, passed_over: Sequence[Damaged] = ()) -> None:
        self.path, self._index, self.passed_over = path, index, passed_over
        self._files = BoxFiles(path)

    @property
    def index(self) -> Index:
        return self._index

    @property
    def step(self) -> int:
        return self._index.step

    @property
    def header(self) -> dict[str, Any]:
        return self._index.header

    @property
    def names(self) -> Sequence[str]:
        """Of the tensors, in the order in which they were saved."""
        return tuple(self._index.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._tensor(name).dtype]

    def read(self, name: str, region: Region) -> torch.Tensor:
        """A region's values, in memory of their own; as `read_into`."""
        self._check(name, region)
        values = torch.empty(size_of(region), dtype=self.dtype(name))
        self.read_into(name, region, values)
        return values

    def read_into(self, name: str, region: Region, values: torch.Tensor) -> None:
        """Fill `values`, of the region's shape and the tensor's dtype in host memory. Only what
        holds them is read, and where it is dense there is no other copy.

        `DataError` for a name or a region that isn't in it, and where a part of the region would be
        left without values. Checksums were compared by `newest`, or by `check_files`.
        """
        self._check(name, region)
        assert (tuple(values.shape), values.dtype) == (size_of(region), self.dtype(name)), name
        values, left = values.detach(), values.numel()
        for box in self._tensor(name).boxes if left else ():
            part = intersection(box.region, region)
            if num_elements(part):
                self._files.read(box, part, values[slices_within(part, region)])
                left -= num_elements(part)
        if left:
            raise DataError(
                f"{self.path} has no values for {left:,} elements of {name} in {region}; use "
                "another checkpoint"
            )

    def _check(self, name: str, region: Region) -> None:
        shape = self.shape(name)
        if len(region) != len(shape) or any(
            not 0 <= side.start <= side.stop <= n for side, n in zip(region, shape, strict=True)
        ):
            raise DataError(
                f"{self.path} has {name} of {list(shape)}, without a region {region}; was it "
                "saved by another model?"
            )

    def _tensor(self, name: str) -> StoredTensor:
        try:
            return self._index.tensors[name]
        except KeyError:
            raise DataError(
                f"{self.path} holds no {name}; was it saved by another model, or with another "
                "optimizer?"
            ) from None


def open_checkpoint(path: Path) -> Checkpoint:
    """The committed checkpoint at `path`, without communication. `DataError` where its index isn't
    sound; its files are not read.
    """
    return Checkpoint(path, folders.read_index(path))


def newest(folder: Path, comm: Communicator) -> Checkpoint | None:
    """The newest committed checkpoint in `folder` whose index and files are sound, the same on all
    ranks; None where none was ever committed. Collective.

    The ranks share the reading of all its bytes once, to compare checksums. Where it is damaged the
    one before it is taken, which says so (`passed_over`). `DataError` where all are damaged, since
    to begin anew would end in overwriting them, and where one can't be read: it may be sound.
    """
    damaged: list[Damaged] = []
    for path in from_root(comm, lambda: folders.committed(folder)):
        try:
            index = from_root(comm, lambda path=path: folders.read_index(path))  # type: ignore[misc]
            with raise_on_all_ranks(comm):
                check_files(path, index, comm.rank, comm.size)
        except DamageError as error:
            damaged.append(Damaged(path, str(error)))
            continue
        return Checkpoint(path, index, damaged)
    if not damaged:
        return None
    problems = "; ".join(problem for _, problem in damaged)
    every = DataError(
        f"every checkpoint in {folder} is damaged ({problems}); restore one, or move them away to "
        "begin anew"
    )
    every.agreed = True
    raise every
