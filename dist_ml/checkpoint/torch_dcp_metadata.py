"""The metadata of torch.distributed.checkpoint (DCP), which is a pickle, read without letting it
run anything.

    the pickle      may name the classes below and torch's dtypes, nothing else
    unpickled       each such object is a `_Record`: what it was made with and its state
    metadata        torch's own classes, made here of what was found in the records

A pickle can set attributes of what it names (its BUILD operation), so none of torch's classes or
functions is handed to it: a record's class refuses that, and holds nothing that anybody calls.
"""

import pickle
from pathlib import PurePath
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dist_ml.checkpoint.boxes import fill
from dist_ml.partition import Range
from dist_ml.placement import whole


class _Record:
    """An object of the pickle: the plain values that it was made with, and its state.

    BUILD calls `__setstate__` where there is one, on the class as well, where it fails: attributes
    of a class are never set.
    """

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> "_Record":
        record = super().__new__(cls)
        record.args = args
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


_METADATA, _STORAGE_INFO = f"{metadata.__name__}.", f"{filesystem.__name__}._StorageInfo"
_RECORDS: dict[str, type[_Record]] = {
    name: type(name, (_Record,), {})
    for name in (
        *(
            f"{_METADATA}{known}"
            for known in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        _STORAGE_INFO,
        "torch.Size",
        "torch.serialization._get_layout",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
    )
}


class _Unpickler(pickle.Unpickler):
    """Makes records and dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        record = _RECORDS.get(f"{module}.{name}")
        if record is not None:
            return record
        dtype = getattr(torch, name, None) if module == "torch" else None
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return dtype


def read_metadata(file: BinaryIO) -> Metadata:
    """Which tensors there are, and where their parts lie. Raises any error for what is no such
    metadata: whatever damage makes of a pickle.
    """
    found = _state(_Unpickler(file).load(), "Metadata")
    entries = {_text(name): _entry(value) for name, value in found["state_dict_metadata"].items()}
    storage = {_index(index): _storage_info(info) for index, info in found["storage_data"].items()}
    return Metadata(entries, storage_data=storage, storage_meta=StorageMeta())


def _entry(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, _RECORDS[f"{_METADATA}BytesStorageMetadata"]):
        return BytesStorageMetadata()
    state = _state(value, "TensorStorageMetadata")
    dtype = _record(state["properties"], f"{_METADATA}TensorProperties").state[0]
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"{dtype!r} is no dtype")
    size, chunks = _size(state["size"]), [_chunk(chunk) for chunk in state["chunks"]]
    regions = {
        tuple(Range(a, a + n) for a, n in zip(chunk.offsets, chunk.sizes, strict=True))
        for chunk in chunks
    }
    inside = all(side.stop <= n for region in regions for side, n in zip(region, size, strict=True))
    if not inside or not fill(frozenset(regions), whole(size)):
        raise pickle.UnpicklingError(f"its parts are not the whole of a tensor of {list(size)}")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _chunk(value: Any) -> ChunkStorageMetadata:
    state = _state(value, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_size(state["offsets"]), _size(state["sizes"]))


def _index(value: Any) -> MetadataIndex:
    state = _state(value, "MetadataIndex")
    offset = state.get("offset")
    return MetadataIndex(_text(state["fqn"]), None if offset is None else _size(offset))


def _storage_info(value: Any) -> _StorageInfo:
    state = _record(value, _STORAGE_INFO).state
    file = _text(state["relative_path"])
    if PurePath(file).name != file:
        raise pickle.UnpicklingError(f"{file!r} is no plain name of a file")
    if state.get("transform_descriptors"):
        raise pickle.UnpicklingError("its tensors are transformed; save it without extensions")
    return _StorageInfo(file, _count(state["offset"]), _count(state["length"]))


def _state(value: Any, name: str) -> dict[str, Any]:
    state = _record(value, _METADATA + name).state
    if type(state) is not dict:
        raise pickle.UnpicklingError(f"a {name} without fields")
    return state


def _record(value: Any, name: str) -> _Record:
    if not isinstance(value, _RECORDS[name]):
        raise pickle.UnpicklingError(f"a {type(value).__name__} in place of {name}")
    return value


def _size(value: Any) -> torch.Size:
    return torch.Size(map(_count, *_record(value, "torch.Size").args))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise pickle.UnpicklingError(f"{value!r} is no name")
    return value
