"""The folder of a run's checkpoints: what it holds under which name, and how one is committed.

    step-40/              rank-0000.safetensors …  index.json  COMMIT
    step-60.tmp/          a save under way, or what a killed one left: nobody's
    step-40.replaced/     the former step-40, while a new one takes its place
    step-80.damaged/      what a run that went on from step-40 found damaged and moved aside

A folder without COMMIT is not committed. COMMIT holds the checksum of the index, and the index
those of the files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dist_ml.checkpoint.checksum import checksum
from dist_ml.checkpoint.files import Files, make_durable_folder, remove_tree, write_file
from dist_ml.checkpoint.index import Index
from dist_ml.checkpoint.index_parser import parse
from dist_ml.errors import DamageError, DataError

INDEX, COMMIT = "index.json", "COMMIT"
_CHECKPOINT = re.compile(r"step-(\d+)(\.replaced)?")
_LEFTOVER = re.compile(r"step-\d+(\.replaced)?\.tmp")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is committed: it, the `last` newest (with it), and
    those whose step is a multiple of `every`.
    """

    last: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        assert self.last >= 1, self
        assert self.every is None or self.every >= 1, self


def unfinished_folder(folder: Path, step: int) -> Path:
    """Where a save writes until it is committed."""
    return folder / f"step-{step}.tmp"


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints, newest first; not whether they are sound. None where there is no
    folder. `DataError` where it can't be read.
    """
    try:
        found = [
            (int(match[1]), match[2] is None, path)
            for path in folder.iterdir()
            if (match := _CHECKPOINT.fullmatch(path.name)) and _is_committed(path)
        ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    return [path for *_, path in sorted(found, reverse=True)]


def find(path: Path) -> list[Path]:
    """The committed checkpoints at `path`, newest first: itself, or those in it, or in its folder
    `checkpoints` where it is a run's. `DataError` where there are none, or they can't be read.
    """
    try:
        if _is_committed(path):
            return [path]
    except OSError as error:
        raise unreadable(path, error) from error
    found = committed(path) or committed(path / "checkpoints")
    if not found:
        raise DataError(
            f"{path} holds no committed checkpoint; give a run, its folder checkpoints, or one "
            "step-N of it"
        )
    return found


def unreadable(path: Path, error: OSError) -> DataError:
    """What can't be read may be sound, so nobody passes it over."""
    return DataError(
        f"{path} can't be read: {error.strerror or error}; mend that, or move the checkpoint away "
        "to take the one before it"
    )


def read_index(path: Path) -> Index:
    """The index of a committed checkpoint; `DamageError` where it isn't the one committed,
    `DataError` where it can't be read, or another version's.
    """
    try:
        commit, text = (path / COMMIT).read_bytes(), (path / INDEX).read_bytes()
    except FileNotFoundError as error:
        raise DamageError(
            f"{path} is no committed checkpoint: {error.filename} is missing"
        ) from None
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from error
    try:
        expected = json.loads(commit)["index_checksum"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(
            f"{path / COMMIT} is damaged ({type(error).__name__}: {error})"
        ) from error
    if checksum(text) != expected:
        raise DamageError(f"{path / INDEX} is damaged: its checksum is not that in {COMMIT}")
    try:
        return parse(text)
    except DataError as error:
        raise type(error)(f"{path / INDEX}: {error}") from error


def begin(files: Files, folder: Path, step: int) -> None:
    """Make the folder of a save, after removing what killed saves left."""
    make_durable_folder(files, folder)
    for path in sorted(folder.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            remove_tree(files, path)
    files.make_folder(unfinished_folder(folder, step))


def commit(files: Files, folder: Path, index: Index) -> Path:
    """Make a checkpoint of a save whose files are written: 1. the index, 2. the name without
    `.tmp`, 3. COMMIT, each on the disk before the next.
    """
    unfinished, final = unfinished_folder(folder, index.step), _final_folder(folder, index.step)
    text = index.text().encode()
    write_file(files, unfinished / INDEX, [memoryview(text)])
    files.sync_folder(unfinished)
    _make_room(files, final)
    files.rename(unfinished, final)
    files.sync_folder(folder)
    line = json.dumps({"index_checksum": checksum(text)}).encode() + b"\n"
    write_file(files, final / f"{COMMIT}.tmp", [memoryview(line)])
    files.rename(final / f"{COMMIT}.tmp", final / COMMIT)
    files.sync_folder(final)
    return final


def abandon(files: Files, folder: Path, step: int) -> None:
    """Give back the room of a save that failed, wherever it stood."""
    for path in (unfinished_folder(folder, step), _final_folder(folder, step)):
        if path.is_dir() and not _is_committed(path):
            remove_tree(files, path)


def retain(files: Files, folder: Path, step: int, keep: Keep) -> None:
    """Remove what is not to be kept, once `step` is committed, which always stays. What a save left
    that was killed just before COMMIT goes as well. Those of later steps are not this run's to
    count or to remove.
    """
    for path in sorted(folder.iterdir()):
        if _CHECKPOINT.fullmatch(path.name) and path.is_dir() and not _is_committed(path):
            remove_tree(files, path)
    steps = {path: int(path.stem.removeprefix("step-")) for path in committed(folder)}
    for path in list(steps):
        if path.suffix and path.with_suffix("") in steps:  # replaced
            _discard(files, path)
            del steps[path]
    for path in [path for path, its_step in steps.items() if its_step <= step][keep.last :]:
        if keep.every is None or steps[path] % keep.every:
            _discard(files, path)


def set_aside(files: Files, path: Path) -> Path:
    """Take a damaged checkpoint out of the way of those that will be saved; where it is now. What
    was set aside of this step before is removed.
    """
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir():
        remove_tree(files, aside)
    files.rename(path, aside)
    return aside


def _final_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _is_committed(path: Path) -> bool:
    """`OSError` where that can't be seen: `Path.exists` would say no, and it would be removed."""
    try:
        (path / COMMIT).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _make_room(files: Files, final: Path) -> None:
    """For a checkpoint of a step that has one, which is replaced."""
    if not final.is_dir():
        return
    if not _is_committed(final):
        remove_tree(files, final)
        return
    replaced = final.with_name(f"{final.name}.replaced")
    if replaced.is_dir():
        _discard(files, replaced)
    files.rename(final, replaced)


def _discard(files: Files, path: Path) -> None:
    """Remove a checkpoint: not committed any more from the first operation on."""
    leftover = path.with_name(f"{path.name}.tmp")
    files.rename(path, leftover)
    remove_tree(files, leftover)
