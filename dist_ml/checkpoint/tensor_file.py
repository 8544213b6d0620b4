"""One file of boxes, in safetensors form: eight bytes (how long the header is), a JSON header
padded with spaces, and the values of the boxes one after the other, little-endian and row-major.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_ml.checkpoint.checksum import Checksum, checksum, pieces_of
from dist_ml.checkpoint.files import Files, write_file
from dist_ml.errors import DataError

# How safetensors spells the dtypes; the index has the same names.
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # of the first value, so of every value where wider dtypes come first


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: `size` is its shape."""

    key: str
    dtype: str
    size: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.size) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """A file's header, and the byte at which each entry's values start."""

    header: bytes
    starts: tuple[int, ...]
    num_bytes: int


def dtype_name(dtype: torch.dtype) -> str:
    """`DataError` for a dtype that checkpoints don't hold."""
    if dtype not in _NAMES:
        raise DataError(
            f"a checkpoint can't hold {dtype}; convert it to one of "
            + ", ".join(str(known) for known in _NAMES)
        )
    return _NAMES[dtype]


def layout(entries: Sequence[Entry]) -> Layout:
    """Where the values lie in a file of these entries, in their order. Keys differ."""
    header: dict[str, object] = {}
    starts, start = [], 0
    for entry in entries:
        stop = start + entry.num_bytes
        header[entry.key] = {
            "dtype": entry.dtype,
            "shape": entry.size,
            "data_offsets": (start, stop),
        }
        starts.append(start)
        start = stop
    assert len(header) == len(entries), "two boxes of one name in one place"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    text = struct.pack("<Q", len(text)) + text
    return Layout(text, tuple(len(text) + value for value in starts), len(text) + start)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A dense tensor's memory; a copy of one that isn't dense or not in host memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def write(files: Files, path: Path, header: bytes, values: Iterable[memoryview]) -> tuple[str, ...]:
    """Write and sync a file; the checksums of the header and of each entry's values, each of which
    is asked for when its turn comes. `OSError` where that fails.
    """
    sums = [checksum(header)]

    def parts() -> Iterator[memoryview]:
        yield memoryview(header)
        for value in values:
            total = Checksum()
            for piece in pieces_of(value):
                total.add(piece)
                yield piece
            sums.append(total.text)

    write_file(files, path, parts())
    return tuple(sums)
