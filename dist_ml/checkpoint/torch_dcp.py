"""State dicts in the form of torch.distributed.checkpoint (DCP), by its own writer and reader.

DCP keeps its metadata in a pickle. It is read here by an unpickler that makes the classes of such
metadata and nothing else, so that a file from elsewhere can't run code; tensors are read by torch
with `weights_only`.
"""

import pathlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dist_ml.errors import DataError

_CLASSES: Mapping[str, Any] = {
    **{
        f"{metadata.__name__}.{name}": getattr(metadata, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
        if hasattr(metadata, name)
    },
    f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo,
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": lambda name: {str(torch.strided): torch.strided}[name],
    "pathlib.PosixPath": pathlib.PurePosixPath,
    "pathlib.WindowsPath": pathlib.PureWindowsPath,
}


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of DCP's metadata, and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        known = _CLASSES.get(f"{module}.{name}")
        if known is None and module == "torch":
            dtype = getattr(torch, name, None)
            known = dtype if isinstance(dtype, torch.dtype) else None
        if known is None:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return known


class _Reader(FileSystemReader):
    """DCP's reader, but for how the metadata is unpickled."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _MetadataUnpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
        return found


def write(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a state dict as a DCP checkpoint of one rank. `DataError` where the folder has files,
    or can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} isn't empty; name a new folder")
    with _in_words(folder, "written"):
        save(dict(state), storage_writer=FileSystemWriter(folder), no_dist=True)


def read(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a DCP checkpoint whose names begin with `prefix`, without it; what isn't a
    tensor is left out. Memory: all of them. `DataError` for what is no such checkpoint.
    """
    reader = _Reader(folder)
    with _in_words(folder, "read"):
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and name.startswith(prefix)
        }
        if state:
            load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


@contextmanager
def _in_words(folder: Path, what: str) -> Iterator[None]:
    """torch's many errors as one; its words about a missing process group are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except Exception as error:  # whatever damage makes of a pickle
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{folder} can't be {what} as a checkpoint of torch.distributed.checkpoint: "
                f"{reason}"
            ) from error
