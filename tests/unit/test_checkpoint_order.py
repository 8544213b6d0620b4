"""What a save brings to the disk before what: every fsync is there, and none comes too late."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from tests.checkpoint_world import CUTS, pieces, state
from tests.thread_world import run_ranks


class Operation(NamedTuple):
    """One on files, or the end of a save; `target` is the new name of what was renamed."""

    name: str
    path: Path = Path()
    target: Path = Path()


class RecordedFiles(Files):
    """Notes the operations of all ranks, in their order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._lock = threading.Lock()
        self._paths: dict[int, Path] = {}  # by descriptor

    def make_folder(self, path: Path) -> None:
        with self._lock:
            super().make_folder(path)
            self.operations.append(Operation("make", path))

    def create(self, path: Path) -> int:
        with self._lock:
            descriptor = super().create(path)
            self._paths[descriptor] = path
            self.operations.append(Operation("make", path))
            return descriptor

    def write(self, descriptor: int, data: memoryview) -> None:
        with self._lock:
            super().write(descriptor, data)
            self.operations.append(Operation("write", self._paths[descriptor]))

    def sync(self, descriptor: int) -> None:
        with self._lock:
            self.operations.append(Operation("sync", self._paths[descriptor]))

    def sync_folder(self, path: Path) -> None:
        with self._lock:
            self.operations.append(Operation("sync", path))

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            super().rename(source, target)
            self.operations.append(Operation("rename", source, target))


def too_late(operations: Sequence[Operation]) -> list[str]:
    """What is not on the disk when it must be.

    | by the time that         | there must be                                                   |
    |--------------------------|-----------------------------------------------------------------|
    | step-N.tmp gets its name | its files, the names in it, and those of the folders above it   |
    | COMMIT gets its name     | its bytes, the name step-N, and those of the folders above it   |
    | an older one goes; end   | the name COMMIT                                                 |
    """
    unsynced: set[Path] = set()  # files of whose bytes, and folders of whose names, some are not
    committed: set[Path] = set()
    found = []
    for name, path, target in operations:
        needed: set[Path] = set()
        if name == "rename" and not target.suffix:
            needed = {each for each in unsynced if each.is_relative_to(path)}
            needed |= unsynced & {*path.parent.parents}
        elif name in ("rename", "end"):
            needed = unsynced & committed
        found += [f"{each} is synced after {name} {path}" for each in needed]
        if name == "sync":
            unsynced.discard(path)
        elif name == "write":
            unsynced.add(path)
        elif name in ("make", "rename"):
            unsynced.add((target if name == "rename" else path).parent)
        if target.name == "COMMIT":
            committed.add(target.parent)
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_sync_is_needed_there_and_in_time(asynchronous: bool, tmp_path: Path) -> None:
    folder, files = tmp_path / "run" / "checkpoints", RecordedFiles()

    def saves(comm: Communicator) -> None:
        saver = AsyncSaver(folder, comm, Keep(last=1), files)
        own = pieces(state(), CUTS["flat"], comm.rank, comm.size)
        for step in (1, 2):
            if asynchronous:
                saver.save(step, own, {})
            else:
                save(folder, step, own, {}, comm, Keep(last=1), files)
            saver.close()
            if comm.rank == 0:
                files.operations.append(Operation("end"))
            comm.barrier()

    run_ranks(2, saves)
    made = files.operations
    assert too_late(made) == []
    syncs = [at for at, operation in enumerate(made) if operation.name == "sync"]
    # Two folders above; of each save two ranks' files, the index, COMMIT, and the names in three.
    assert len(syncs) == 2 + 2 * 7
    for at in syncs:
        missing = made[:at] + made[at + 1 :]
        assert too_late(missing), f"nothing misses {made[at]}"
        next_step = at
        while missing[next_step].name not in ("rename", "end"):
            next_step += 1
        late = [*missing[: next_step + 1], made[at], *missing[next_step + 1 :]]
        assert too_late(late), f"{made[at]} may come after {missing[next_step]}"
