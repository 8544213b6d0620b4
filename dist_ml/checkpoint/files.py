"""Every operation on files that a save makes, one method each: a test can end a save at any of
them, and none is made elsewhere.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_START_BYTES = 16 << 20  # handed to the disk together


class Files:
    """The file system. Errors are `OSError`."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        """A descriptor of a new, empty file."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> None:
        """All of `data`, which is bytes."""
        while data:
            data = data[os.write(descriptor, data) :]

    def start_sync(self, descriptor: int, start: int, num_bytes: int) -> None:
        """Have the system bring these bytes to the disk from now on, without waiting for it. (What
        isn't there yet stays in memory, so this advice does nothing else.)
        """
        os.posix_fadvise(descriptor, start, num_bytes, os.POSIX_FADV_DONTNEED)

    def sync(self, descriptor: int) -> None:
        """Return when what was written is on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """An empty one."""
        path.rmdir()


def write_file(files: Files, path: Path, data: Iterable[memoryview]) -> None:
    """A new file of `data`, on the disk when this returns (its name is, after `sync_folder`).

    The disk works from the first bytes on: else it would wait while the rest is summed and copied.
    """
    descriptor, started, written = files.create(path), 0, 0
    try:
        for part in data:
            files.write(descriptor, part)
            written += len(part)
            if written - started >= _START_BYTES:
                files.start_sync(descriptor, started, written - started)
                started = written
        files.sync(descriptor)
    finally:
        files.close(descriptor)


def make_durable_folder(files: Files, path: Path) -> None:
    """Make a folder and those above it that are missing, and have their names on the disk."""
    if not path.is_dir():
        make_durable_folder(files, path.parent)
        files.make_folder(path)
        files.sync_folder(path.parent)


def remove_tree(files: Files, path: Path) -> None:
    """Remove a folder with all that is in it."""
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(files, entry)
        else:
            files.remove_file(entry)
    files.remove_folder(path)
