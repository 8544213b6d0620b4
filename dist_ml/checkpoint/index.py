"""The index of a checkpoint: what tensors it holds, in which boxes, and where those lie."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dist_ml.checkpoint.boxes import fill, size_of
from dist_ml.checkpoint.plan import HeldBox, WriterPlan
from dist_ml.checkpoint.tensor_file import DTYPES
from dist_ml.errors import DataError
from dist_ml.partition import Range
from dist_ml.placement import Region, whole

FORMAT = "dist_ml checkpoint"
VERSION = 1


@dataclass(frozen=True)
class StoredBox:
    """A box in a file: its values are the `num_bytes` from byte `start` on."""

    region: Region
    file: str
    key: str
    start: int
    num_bytes: int
    checksum: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and its boxes, which are the whole of it."""

    shape: tuple[int, ...]
    dtype: str
    boxes: tuple[StoredBox, ...]


@dataclass(frozen=True)
class StoredFile:
    """A file of boxes; `header_bytes` are those before the first value."""

    num_bytes: int
    header_bytes: int
    header_checksum: str


@dataclass(frozen=True)
class Index:
    """All that a checkpoint says of itself. `header` is the caller's."""

    step: int
    header: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]

    def text(self) -> str:
        """As JSON."""
        tensors = {
            name: {
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "boxes": [_box_as_json(box) for box in tensor.boxes],
            }
            for name, tensor in self.tensors.items()
        }
        files = {
            name: {
                "bytes": file.num_bytes,
                "header_bytes": file.header_bytes,
                "header_checksum": file.header_checksum,
            }
            for name, file in self.files.items()
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "header": self.header,
            "files": files,
            "tensors": tensors,
        }
        return json.dumps(content, separators=(",", ":"))


def file_name(rank: int) -> str:
    return f"rank-{rank:04}.safetensors"


def make(
    step: int,
    header: Mapping[str, Any],
    held: Sequence[Sequence[HeldBox]],
    writers: Sequence[WriterPlan],
    sums: Sequence[Sequence[str]],
) -> Index:
    """The index of what was written: `sums[rank]` are the checksums of a rank's file, of its header
    and then of its boxes. Tensors have the order in which the ranks hold them.
    """
    described = {box.name: box for boxes in held for box in boxes}
    boxes: dict[str, list[StoredBox]] = {name: [] for name in described}
    files = {}
    for rank, (writer, (header_sum, *box_sums)) in enumerate(zip(writers, sums, strict=True)):
        if not writer.boxes:
            continue
        file, layout = file_name(rank), writer.layout
        files[file] = StoredFile(layout.num_bytes, len(layout.header), header_sum)
        for box, start, total in zip(writer.boxes, layout.starts, box_sums, strict=True):
            entry = box.entry
            stored = StoredBox(box.region, file, entry.key, start, entry.num_bytes, total)
            boxes[box.name].append(stored)
    tensors = {
        name: StoredTensor(box.shape, box.dtype, tuple(boxes[name]))
        for name, box in described.items()
    }
    return Index(step, dict(header), tensors, files)


def parse(text: str | bytes) -> Index:
    """`DataError` for what is no index, has another version, or contradicts itself."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, and this reads {VERSION}")
        files = {name: _file(name, value) for name, value in content["files"].items()}
        tensors = {name: _tensor(value, files) for name, value in content["tensors"].items()}
        return Index(_number(content["step"]), dict(content["header"]), tensors, files)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"it is no index of a checkpoint that can be read ({type(error).__name__}: {error})"
        ) from error


def _box_as_json(box: StoredBox) -> dict[str, Any]:
    return {
        "offset": [side.start for side in box.region],
        "size": size_of(box.region),
        "file": box.file,
        "key": box.key,
        "start": box.start,
        "checksum": box.checksum,
    }


def _file(name: str, value: Mapping[str, Any]) -> StoredFile:
    if PurePath(name).name != name:
        raise ValueError(f"{name!r} is no plain name of a file")
    header_bytes, num_bytes = _number(value["header_bytes"]), _number(value["bytes"])
    return StoredFile(num_bytes, header_bytes, str(value["header_checksum"]))


def _tensor(value: Mapping[str, Any], files: Mapping[str, StoredFile]) -> StoredTensor:
    shape, dtype = tuple(map(_number, value["shape"])), value["dtype"]
    boxes = tuple(_box(box, DTYPES[dtype].itemsize, files) for box in value["boxes"])
    regions = frozenset(box.region for box in boxes)
    inside = all(
        side.stop <= n for region in regions for side, n in zip(region, shape, strict=True)
    )
    if not inside or len(regions) < len(boxes) or not fill(regions, whole(shape)):
        raise ValueError(f"boxes {sorted(regions)} are not the whole of {list(shape)}")
    return StoredTensor(shape, dtype, boxes)


def _box(value: Mapping[str, Any], itemsize: int, files: Mapping[str, StoredFile]) -> StoredBox:
    region = tuple(
        Range(start, start + size)
        for start, size in zip(
            map(_number, value["offset"]), map(_number, value["size"]), strict=True
        )
    )
    start, num_bytes = _number(value["start"]), math.prod(size_of(region)) * itemsize
    file, key = value["file"], str(value["key"])
    if start + num_bytes > files[file].num_bytes or start < files[file].header_bytes:
        raise ValueError(f"{key} lies outside of {file}")
    return StoredBox(region, file, key, start, num_bytes, str(value["checksum"]))


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
