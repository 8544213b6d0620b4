"""State dicts in the form of torch.distributed.checkpoint (DCP), by its own writer and reader.

Its metadata is read by `torch_dcp_metadata`, so that a file from elsewhere can't run code; tensors
are read by torch with `weights_only`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dist_ml.checkpoint.torch_dcp_metadata import read_metadata
from dist_ml.errors import DataError


class _Reader(FileSystemReader):
    """DCP's reader, but for how the metadata is unpickled."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            return read_metadata(file)


def write(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a state dict as a DCP checkpoint of one rank. `DataError` where the folder has files,
    or can't be written.
    """
    with _in_words(folder, "written"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} isn't empty; name a new folder")
        save(dict(state), storage_writer=FileSystemWriter(folder), no_dist=True)


def read(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a DCP checkpoint whose names begin with `prefix`, without it; what isn't a
    tensor is left out. Memory: all of them. `DataError` for what is no such checkpoint.
    """
    with _in_words(folder, "read"):
        reader = _Reader(folder)
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
        except DataError:
            raise
        except (Exception, CheckpointException) as error:  # whatever damage makes of a pickle
            first: BaseException = error
            if isinstance(error, CheckpointException):  # no Exception, and its text a traceback
                first = next(iter(error.failures.values()))[0]
            reason = " ".join(str(first).split()) or type(first).__name__
            raise DataError(
                f"{folder} can't be {what} as a checkpoint of torch.distributed.checkpoint: "
                f"{reason}"
            ) from error
