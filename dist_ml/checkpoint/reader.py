"""Reading any box of any tensor, whatever ranks wrote it."""

import logging
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dist_ml.checkpoint import folder as folders
from dist_ml.checkpoint.boxes import intersection, num_elements, size_of, slices_within
from dist_ml.checkpoint.index import Index, StoredBox, StoredTensor
from dist_ml.checkpoint.tensor_file import DTYPES
from dist_ml.checkpoint.verify import check_files
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError
from dist_ml.placement import Region

log = logging.getLogger(__name__)


class Checkpoint:
    """A committed checkpoint, opened by one rank. `header` is what its writer gave."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self._index = path, index
        self._maps: dict[str, mmap.mmap] = {}

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
        """A region's values, in memory of their own. Only the pages that hold them are read.

        `DataError` for a name or a region that isn't in it, and where a part of the region would be
        left without values. Checksums were compared by `newest`, or by `check_files`.
        """
        tensor = self._tensor(name)
        if len(region) != len(tensor.shape) or any(
            not 0 <= side.start <= side.stop <= n
            for side, n in zip(region, tensor.shape, strict=True)
        ):
            raise DataError(
                f"{self.path} has {name} of {list(tensor.shape)}, without a region {region}; was "
                "it saved by another model?"
            )
        values = torch.empty(size_of(region), dtype=DTYPES[tensor.dtype])
        left = values.numel()
        for box in tensor.boxes if left else ():
            part = intersection(box.region, region)
            if num_elements(part):
                stored = self._values(box, values.dtype)[slices_within(part, box.region)]
                values[slices_within(part, region)] = stored
                left -= num_elements(part)
        if left:
            raise DataError(
                f"{self.path} has no values for {left:,} elements of {name} in {region}; use "
                "another checkpoint"
            )
        return values

    def _tensor(self, name: str) -> StoredTensor:
        try:
            return self._index.tensors[name]
        except KeyError:
            raise DataError(
                f"{self.path} holds no {name}; was it saved by another model, or with another "
                "optimizer?"
            ) from None

    def _values(self, box: StoredBox, dtype: torch.dtype) -> torch.Tensor:
        """A box's values where the file is mapped into memory."""
        count = num_elements(box.region)
        flat = torch.frombuffer(self._map(box.file), dtype=dtype, count=count, offset=box.start)
        return flat.view(size_of(box.region))

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            try:
                with (self.path / file).open("rb") as opened:
                    # Private, because torch wants memory that may be written.
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise DataError(f"{self.path / file}: {error.strerror or error}") from error
        return self._maps[file]


def open_checkpoint(path: Path) -> Checkpoint:
    """The committed checkpoint at `path`, without communication. `DataError` where its index isn't
    sound; its files are not read.
    """
    return Checkpoint(path, folders.read_index(path))


def newest(folder: Path, comm: Communicator) -> Checkpoint | None:
    """The newest committed checkpoint in `folder` whose index and files are sound, the same on all
    ranks; None where none was ever committed. Collective.

    The ranks share the reading of all its bytes once, to compare checksums. A damaged one is told
    in the log, and the one before it is taken. `DataError` where all are damaged: to begin anew
    would end in overwriting them.
    """
    problems = []
    for path in from_root(comm, lambda: _committed(folder)):
        try:
            index = from_root(comm, lambda path=path: folders.read_index(path))  # type: ignore[misc]
            with raise_on_all_ranks(comm):
                check_files(path, index, comm.rank, comm.size)
        except DataError as error:
            log.warning("%s is damaged, so the one before it is taken: %s", path, error)
            problems.append(str(error))
            continue
        return Checkpoint(path, index)
    if not problems:
        return None
    every = DataError(
        f"every checkpoint in {folder} is damaged ({'; '.join(problems)}); restore one, or move "
        "them away to begin anew"
    )
    every.agreed = True
    raise every


def _committed(folder: Path) -> list[Path]:
    try:
        return folders.committed(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror or error}") from error
