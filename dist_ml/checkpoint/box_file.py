"""Reading values out of a file of boxes."""

import mmap
from pathlib import Path

import torch

from dist_ml.checkpoint.boxes import num_elements, size_of, slices_within
from dist_ml.checkpoint.folder import unreadable
from dist_ml.checkpoint.index import StoredBox
from dist_ml.checkpoint.tensor_file import bytes_of
from dist_ml.errors import DamageError
from dist_ml.placement import Region

_MOST_OPEN = 64  # a checkpoint of many writers has more files than a process may have open


class BoxFiles:
    """The files of one checkpoint, opened when they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._maps: dict[str, mmap.mmap] = {}

    def read(self, box: StoredBox, part: Region, target: torch.Tensor) -> None:
        """The values of a part of a box into `target`, which has that shape and the box's dtype.

        What is one run of bytes in the file and in memory is read there at once; anything else is
        copied from the mapped file, of which the pages that hold it are read.
        """
        try:
            mapped = self._map(box.file)
            whole_box = torch.frombuffer(
                mapped, dtype=target.dtype, count=num_elements(box.region), offset=box.start
            ).view(size_of(box.region))
            source = whole_box[slices_within(part, box.region)]
            if source.is_contiguous() and target.is_contiguous():
                start = box.start + source.data_ptr() - whole_box.data_ptr()
                _read_run(self._path / box.file, start, bytes_of(target))
            else:
                target.copy_(source)
        except OSError as error:
            raise unreadable(self._path / box.file, error) from error
        except ValueError as error:
            raise DamageError(f"{self._path / box.file} is damaged: {error}") from error

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            if len(self._maps) == _MOST_OPEN:
                del self._maps[next(iter(self._maps))]
            with (self._path / file).open("rb") as opened:
                # Private, because torch wants memory that may be written.
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]


def _read_run(file: Path, start: int, target: memoryview) -> None:
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while target:
            count = opened.readinto(target)
            if not count:
                raise ValueError(f"it ends {len(target):,} bytes early")
            target = target[count:]
