"""Are a checkpoint's files what its index says?"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dist_ml.checkpoint.checksum import Checksum
from dist_ml.checkpoint.folder import unreadable
from dist_ml.checkpoint.index import Index
from dist_ml.errors import DamageError

_BUFFER_BYTES = 1 << 20
_NUM_THREADS = 2  # so that the disk reads for one while another sums


@dataclass(frozen=True)
class Segment:
    """Bytes of a file that have one checksum."""

    file: str
    start: int
    num_bytes: int
    checksum: str
    what: str


def segments(index: Index) -> list[Segment]:
    """All bytes of all files, in the order of files and positions."""
    headers = [
        Segment(name, 0, file.header_bytes, file.header_checksum, "its header")
        for name, file in index.files.items()
    ]
    boxes = [
        Segment(box.file, box.start, box.num_bytes, box.checksum, box.key)
        for tensor in index.tensors.values()
        for box in tensor.boxes
    ]
    order = {name: place for place, name in enumerate(index.files)}
    return sorted([*headers, *boxes], key=lambda part: (order[part.file], part.start))


def check_files(path: Path, index: Index, share: int = 0, num_shares: int = 1) -> None:
    """Read the `share`-th of `num_shares` equal parts of a checkpoint's bytes, whole boxes, and
    hold them against their checksums. `DamageError` for the first that differs, and for any file
    that is missing or has another size; `DataError` for one that can't be read. Memory: two buffers
    of 1 MB.
    """
    for name, file in index.files.items():
        with _in_words(path / name):
            num_bytes = (path / name).stat().st_size
        if num_bytes != file.num_bytes:
            raise DamageError(
                f"{path / name} has {num_bytes:,} bytes in place of {file.num_bytes:,}"
            )
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        parts = [(share * _NUM_THREADS + n, num_shares * _NUM_THREADS) for n in range(_NUM_THREADS)]
        done = [threads.submit(_check_share, path, index, *part) for part in parts]
        for part_done in done:
            part_done.result()


def _check_share(path: Path, index: Index, share: int, num_shares: int) -> None:
    own = _share(segments(index), share, num_shares)
    for name, parts in itertools.groupby(own, key=lambda part: part.file):
        with _in_words(path / name):
            damaged = _first_damaged(path / name, parts)
        if damaged is not None:
            raise DamageError(f"{path / name} is damaged: the checksum of {damaged.what}")


@contextlib.contextmanager
def _in_words(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DamageError(f"{file} is missing") from error
    except OSError as error:
        raise unreadable(file, error) from error


def _share(parts: list[Segment], share: int, num_shares: int) -> Iterator[Segment]:
    """The parts whose middle lies in this share of all bytes."""
    total, before = sum(part.num_bytes for part in parts), 0
    for part in parts:
        middle = before + part.num_bytes / 2
        if min(int(middle * num_shares / max(total, 1)), num_shares - 1) == share:
            yield part
        before += part.num_bytes


def _first_damaged(file: Path, parts: Iterable[Segment]) -> Segment | None:
    """Of the parts, in their order in the file."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with file.open("rb", buffering=0) as opened:
        for part in parts:
            total, left = Checksum(), part.num_bytes
            opened.seek(part.start)
            while left > 0:
                count = opened.readinto(buffer[:left])
                if not count:
                    raise DamageError(f"{file} ends {left:,} bytes early")
                total.add(buffer[:count])
                left -= count
            if total.text != part.checksum:
                return part
    return None
