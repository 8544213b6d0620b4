"""A model's weights as one plain state dict: out of a checkpoint, and into one."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from dist_ml.checkpoint import tensor_file
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import committed
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.reader import Checkpoint
from dist_ml.checkpoint.tensor_file import Entry
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import DataError
from dist_ml.placement import whole

MODEL = "model/"  # what the names of a model's weights begin with


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The model's tensors, whole, by their plain names. Memory: all of them."""
    return {
        name.removeprefix(MODEL): checkpoint.read(name, whole(checkpoint.shape(name)))
        for name in _of_model(checkpoint)
    }


def export_weights(checkpoint: Checkpoint, file: Path) -> int:
    """Write the model's tensors to a safetensors file, whole or not at all; how many. Memory: the
    largest of them. `DataError` where there are none, or no room.
    """

    def width(name: str) -> int:
        return -checkpoint.dtype(name).itemsize

    names = sorted(_of_model(checkpoint), key=width)  # so that all are aligned
    entries = [
        Entry(
            name.removeprefix(MODEL),
            tensor_file.dtype_name(checkpoint.dtype(name)),
            checkpoint.shape(name),
        )
        for name in names
    ]

    def values() -> Iterator[memoryview]:
        for name in names:
            yield tensor_file.bytes_of(checkpoint.read(name, whole(checkpoint.shape(name))))

    unfinished = file.with_name(f"{file.name}.part")
    try:
        tensor_file.write(Files(), unfinished, tensor_file.layout(entries).header, values())
        unfinished.replace(file)
    except OSError as error:
        raise DataError(
            f"{file} can't be written: {error.strerror or error}; name a file in a folder that is "
            "there and has room"
        ) from error
    finally:  # on any error: what was written has gone, or gives its room back
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return len(names)


def read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """A plain state dict from a safetensors file; `DataError` for another file."""
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{file} can't be read as safetensors ({' '.join(str(error).split())}); other forms "
            "have to be converted first"
        ) from error


def import_weights(
    state: Mapping[str, torch.Tensor], folder: Path, header: Mapping[str, Any]
) -> Path:
    """A checkpoint of weights alone, `step-0` of a folder without checkpoints. `DataError` where
    there are some, so that no run's are mixed with others.
    """
    if committed(folder):
        raise DataError(f"{folder} holds checkpoints already; name a new folder")
    if not state:
        raise DataError("there are no tensors in what is to be imported; is it a state dict?")
    pieces = [
        Piece(MODEL + name, tuple(tensor.shape), whole(tensor.shape), tensor)
        for name, tensor in state.items()
    ]
    return save(folder, 0, pieces, header, Communicator(Loopback()))


def _of_model(checkpoint: Checkpoint) -> list[str]:
    names = [name for name in checkpoint.names if name.startswith(MODEL)]
    if not names:
        raise DataError(f"{checkpoint.path} holds no weights: no name begins with {MODEL}")
    return names
