"""A disk that loses power: what nobody has synced is gone."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dist_ml.checkpoint.files import Files


class NameChange(NamedTuple):
    """A name that was made, changed or removed in a folder, which may itself get another name."""

    folder: int  # its inode
    undo: Callable[[Path], object]  # given where the folder is


class UnsyncedDisk(Files):
    """The folder `root` as several threads see it, until `lose_power` has it as the disk does.

    Lost are the bytes of files that were not synced, and of the names in a folder since that was
    synced the last ones: they reach the disk in their order, and `names_kept` of them did. `stash`
    is a folder elsewhere, for what was removed.
    """

    def __init__(self, root: Path, stash: Path) -> None:
        self._root, self._stash = root, stash
        self._bytes: set[int] = set()  # inodes of files
        self._names: list[NameChange] = []
        self._lock = threading.Lock()

    def lose_power(self, names_kept: float) -> None:
        for folder, undo in reversed(self._names[round(names_kept * len(self._names)) :]):
            undo(self._paths()[folder])
        for inode in self._bytes & self._paths().keys():
            self._paths()[inode].write_bytes(b"")

    def make_folder(self, path: Path) -> None:
        with self._lock:
            super().make_folder(path)
            self._changed(path, lambda folder: shutil.rmtree(folder / path.name))

    def create(self, path: Path) -> int:
        with self._lock:
            descriptor = super().create(path)
            self._bytes.add(os.fstat(descriptor).st_ino)
            self._changed(path, lambda folder: (folder / path.name).unlink())
            return descriptor

    def sync(self, descriptor: int) -> None:
        with self._lock:
            self._bytes.discard(os.fstat(descriptor).st_ino)

    def sync_folder(self, path: Path) -> None:
        with self._lock:
            synced = path.stat().st_ino
            self._names = [change for change in self._names if change.folder != synced]

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent
        with self._lock:
            super().rename(source, target)
            self._changed(
                source, lambda folder: (folder / target.name).rename(folder / source.name)
            )

    def remove_file(self, path: Path) -> None:
        with self._lock:
            kept = self._stash / str(path.stat().st_ino)
            path.rename(kept)
            self._changed(path, lambda folder: kept.rename(folder / path.name))

    def remove_folder(self, path: Path) -> None:
        assert not any(path.iterdir())
        self.remove_file(path)

    def _changed(self, path: Path, undo: Callable[[Path], object]) -> None:
        self._names.append(NameChange(path.parent.stat().st_ino, undo))

    def _paths(self) -> dict[int, Path]:
        return {path.stat().st_ino: path for path in [self._root, *self._root.rglob("*")]}
