"""The index of a checkpoint: what tensors it holds, in which boxes, and where those lie."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.checkpoint.boxes import size_of
from dist_ml.checkpoint.plan import HeldBox, WriterPlan
from dist_ml.placement import Region

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


def _box_as_json(box: StoredBox) -> dict[str, Any]:
    return {
        "offset": [side.start for side in box.region],
        "size": size_of(box.region),
        "file": box.file,
        "key": box.key,
        "start": box.start,
        "checksum": box.checksum,
    }
