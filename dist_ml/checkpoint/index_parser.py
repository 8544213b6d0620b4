"""Reading an index back: nothing in it is believed before it was looked at."""

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dist_ml.checkpoint.boxes import fill, size_of
from dist_ml.checkpoint.index import FORMAT, VERSION, Index, StoredBox, StoredFile, StoredTensor
from dist_ml.checkpoint.tensor_file import DTYPES
from dist_ml.errors import DamageError, DataError
from dist_ml.partition import Range
from dist_ml.placement import whole

_LARGEST = 1 << 60  # of bytes and elements: none is larger, and sums of some fit 64 bits


def parse(text: str | bytes) -> Index:
    """`DamageError` for what is no index, or contradicts itself; `DataError` for one of another
    program or version.
    """
    try:
        content = json.loads(text)
        _require_ours(content)
        files = {name: _file(name, value) for name, value in content["files"].items()}
        tensors = {name: _tensor(value, files) for name, value in content["tensors"].items()}
        return Index(_number(content["step"]), dict(content["header"]), tensors, files)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise DamageError(
            f"it is no index of a checkpoint that can be read ({type(error).__name__}: {error})"
        ) from error


def _require_ours(content: Mapping[str, Any]) -> None:
    if content["format"] != FORMAT:
        raise DataError(
            f"its format is {content['format']!r} in place of {FORMAT!r}: another program's; "
            "give a checkpoint of dist-ml"
        )
    if content["version"] != VERSION:
        raise DataError(
            f"its version is {content['version']!r}, and this reads {VERSION}; use the dist-ml "
            "that wrote it"
        )


def _file(name: str, value: Mapping[str, Any]) -> StoredFile:
    if PurePath(name).name != name:
        raise ValueError(f"{name!r} is no plain name of a file")
    header_bytes, num_bytes = _number(value["header_bytes"]), _number(value["bytes"])
    return StoredFile(num_bytes, header_bytes, str(value["header_checksum"]))


def _tensor(value: Mapping[str, Any], files: Mapping[str, StoredFile]) -> StoredTensor:
    shape, dtype = tuple(map(_number, value["shape"])), value["dtype"]
    itemsize = DTYPES[dtype].itemsize
    boxes = tuple(_box(box, itemsize, files) for box in value["boxes"])
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
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{value!r} is no count")
    return value
