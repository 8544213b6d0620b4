"""The part of `dist-ml bench checkpoint` that is measured on every rank."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.reader import newest
from dist_ml.checkpoint.writer import save
from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError, MachineError
from dist_ml.measure.compare import alternate, seconds_per_call
from dist_ml.placement import whole

SAVE, LOAD = "save", "load"
OURS, DD, TORCH = "dist_ml", "dd", "torch"
SNAPSHOT = "dist_ml, in the background"  # until the ranks go on
_BLOCK_BYTES = 1 << 20  # of dd
_LIMIT_SECONDS = 120.0


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Seconds of the slowest rank, by what was done and candidate, in rounds."""
    root = from_root(comm, lambda: new_folder(Path(arguments["folder"])))
    try:
        candidates = Candidates(comm, root, arguments["num_matrices"], arguments["width"])
        return {
            SAVE: alternate(candidates.saving(), arguments["rounds"]),
            LOAD: alternate(candidates.loading(), arguments["rounds"]),
        }
    finally:
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(root)


class Candidates:
    """Ways to write and read one state that all ranks hold. Before each call what it wrote the
    last time is removed, or what it reads is taken from the memory that the system keeps of files.
    """

    def __init__(self, comm: Communicator, root: Path, num_matrices: int, width: int) -> None:
        self._comm, self._root = comm, root
        chance = torch.Generator().manual_seed(0)  # bytes that no disk can leave out
        self.state = {
            f"model/{index}.{name}": torch.randn(shape, generator=chance)
            for index in range(num_matrices)
            for name, shape in (("weight", (width, width)), ("bias", (width,)))
        }
        self.loaded = {name: torch.zeros_like(tensor) for name, tensor in self.state.items()}
        self._pieces = [
            Piece(name, tuple(tensor.shape), whole(tensor.shape), tensor)
            for name, tensor in self.state.items()
        ]
        self._saver = AsyncSaver(root / SNAPSHOT, comm, Keep(last=1))
        self._snapshot()  # its buffer is made once a run
        self._saver.close()

    def saving(self) -> dict[str, Callable[[], float]]:
        """Each until all is on the disk, but for the copy."""
        ours = self._root / OURS
        return {
            OURS: self._after_removing(
                OURS, lambda: save(ours, 1, self._pieces, {}, self._comm, Keep(last=1))
            ),
            DD: self._after_removing(DD, self._on_root(self._dd_write)),
            TORCH: self._after_removing(TORCH, self._on_root(self._torch_save)),
            SNAPSHOT: self._in_background,
        }

    def loading(self) -> dict[str, Callable[[], float]]:
        """Each on every rank, until all of the values are in its memory (dd: were there)."""
        return {
            OURS: self._cold(self.load_ours),
            DD: self._cold(self._dd_read),
            TORCH: self._cold(lambda: torch.load(self._root / TORCH, weights_only=True)),
        }

    def load_ours(self) -> dict[str, torch.Tensor]:
        """Into tensors that are there already, like a model's; every checksum is compared."""
        found = newest(self._root / OURS, self._comm)
        assert found is not None
        for name, values in self.loaded.items():
            found.read_into(name, whole(values.shape), values)
        return self.loaded

    def _snapshot(self) -> None:
        self._saver.save(1, self._pieces, {})

    def _in_background(self) -> float:
        seconds = seconds_per_call(self._comm, self._snapshot)
        self._saver.close()
        return seconds

    def _dd_write(self) -> None:
        """Zeros, as many bytes as the state has."""
        num_bytes = sum(tensor.nbytes for tensor in self.state.values())
        operands = f"of={self._root / DD}", f"count={num_bytes}", "iflag=count_bytes"
        _dd("if=/dev/zero", *operands, "conv=fsync")

    def _dd_read(self) -> None:
        _dd(f"if={self._root / DD}", "of=/dev/null")

    def _torch_save(self) -> None:
        with (self._root / TORCH).open("wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())

    def _after_removing(self, name: str, call: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            if self._comm.rank == 0:
                _remove(self._root / name)
                os.sync()
            return seconds_per_call(self._comm, call)

        return timed

    def _cold(self, call: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            if self._comm.rank == 0:
                os.sync()
                for path in self._root.rglob("*"):
                    if path.is_file():
                        drop(path)
            return seconds_per_call(self._comm, call)

        return timed

    def _on_root(self, call: Callable[[], object]) -> Callable[[], object]:
        return call if self._comm.rank == 0 else lambda: None


def new_folder(folder: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="dist_ml-checkpoint-", dir=folder))
    except OSError as error:
        raise DataError(f"folder={folder} can't be written: {error.strerror or error}") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def drop(file: Path) -> None:
    """Take a file, which is on the disk, from the memory that the system keeps of it."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _dd(*operands: str) -> None:
    command = ["dd", f"bs={_BLOCK_BYTES}", *operands]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_LIMIT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(f"{' '.join(command)} failed: {error}") from error
