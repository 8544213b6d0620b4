"""The folder of a run's checkpoints: what it holds under which name, and how one is committed.

    step-40/              rank-0000.safetensors …  index.json  COMMIT
    step-60.tmp/          a save under way, or what a killed one left: nobody's
    step-40.replaced/     the former step-40, while a new one takes its place

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
from dist_ml.errors import DataError

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
    folder. `OSError` where it can't be read.
    """
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), match[2] is None, path)
        for path in folder.iterdir()
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / COMMIT).exists()
    ]
    return [path for *_, path in sorted(found, reverse=True)]


def find(path: Path) -> list[Path]:
    """The committed checkpoints at `path`, newest first: itself, or those in it, or in its folder
    `checkpoints` where it is a run's. `DataError` where there are none.
    """
    if (path / COMMIT).exists():
        return [path]
    found = committed(path) or committed(path / "checkpoints")
    if not found:
        raise DataError(
            f"{path} holds no committed checkpoint; give a run, its folder checkpoints, or one "
            "step-N of it"
        )
    return found


def read_index(path: Path) -> Index:
    """The index of a committed checkpoint; `DataError` where it isn't the one committed."""
    try:
        commit, text = (path / COMMIT).read_text(), (path / INDEX).read_bytes()
        expected = json.loads(commit)["index_checksum"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is no committed checkpoint: {error.filename} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} can't be read ({type(error).__name__}: {error})") from error
    if checksum(text) != expected:
        raise DataError(f"{path / INDEX} is damaged: its checksum is not that in {COMMIT}")
    try:
        return parse(text)
    except DataError as error:
        raise DataError(f"{path / INDEX}: {error}") from error


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
    unfinished, final = unfinished_folder(folder, index.step), folder / f"step-{index.step}"
    text = index.text().encode()
    write_file(files, unfinished / INDEX, [memoryview(text)])
    files.sync_folder(unfinished)
    replaced = _move_aside(files, final)
    files.rename(unfinished, final)
    files.sync_folder(folder)
    line = json.dumps({"index_checksum": checksum(text)}).encode() + b"\n"
    write_file(files, final / f"{COMMIT}.tmp", [memoryview(line)])
    files.rename(final / f"{COMMIT}.tmp", final / COMMIT)
    files.sync_folder(final)
    if replaced is not None:
        _discard(files, replaced)
    return final


def retain(files: Files, folder: Path, step: int, keep: Keep) -> None:
    """Remove what is not to be kept, once `step` is committed: a sound one is always left. What a
    save left that was killed just before COMMIT goes as well.
    """
    for path in sorted(folder.iterdir()):
        if _CHECKPOINT.fullmatch(path.name) and not (path / COMMIT).exists():
            remove_tree(files, path)
    for age, path in enumerate(committed(folder)):
        match = _CHECKPOINT.fullmatch(path.name)
        assert match is not None
        its_step = int(match[1])
        kept = its_step == step or age < keep.last
        if not kept and (keep.every is None or its_step % keep.every):
            _discard(files, path)


def _move_aside(files: Files, final: Path) -> Path | None:
    """Make room for a checkpoint of a step that has one; where that went, if it was committed."""
    replaced = final.with_name(f"{final.name}.replaced")
    if final.is_dir():
        if not (final / COMMIT).exists():
            remove_tree(files, final)
        else:
            if replaced.is_dir():
                _discard(files, replaced)
            files.rename(final, replaced)
    return replaced if replaced.is_dir() else None


def _discard(files: Files, path: Path) -> None:
    """Remove a checkpoint: not committed any more from the first operation on."""
    leftover = path.with_name(f"{path.name}.tmp")
    files.rename(path, leftover)
    remove_tree(files, leftover)
