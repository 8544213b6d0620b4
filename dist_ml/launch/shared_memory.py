"""Files that killed ranks leave in /dev/shm.

Both MPIs map shared segments by name and remove them in MPI_Finalize, so ranks that were killed
leave theirs: some megabytes of memory each, and under MPICH a requeued Slurm job that finds its own
old segment fails to start.
"""

import contextlib
import os
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
_NAMES = ("mpich_shm_*", "sm_segment.*")
_LOOK_SECONDS = 0.1
_SECONDS_TO_MAP = 2.0  # a younger file may be one that its rank is about to map


def remove_orphans(folder: Path = FOLDER, wait: bool = False) -> list[Path]:
    """Remove MPI's segments in `folder` that are this user's and that no process maps; gives what
    was removed.

    Those of the last two seconds stay, because their ranks may be about to map them; `wait` until
    they are old enough to tell.
    """
    deadline = time.monotonic() + (_SECONDS_TO_MAP + 2 * _LOOK_SECONDS if wait else 0.0)
    left = orphans(folder)
    while time.monotonic() < deadline and any(not _is_old(file) for file in left):
        time.sleep(_LOOK_SECONDS)
        left = orphans(folder)
    removed = [file for file in left if _is_old(file)]
    for file in removed:
        with contextlib.suppress(OSError):
            file.unlink()
    return removed


def orphans(folder: Path = FOLDER) -> list[Path]:
    """MPI's segments in `folder` that are this user's and that no process maps."""
    candidates = [file for name in _NAMES for file in folder.glob(name) if _is_own(file)]
    mapped = _mapped_files(folder) if candidates else set()
    return [file for file in candidates if str(file) not in mapped]


def _is_own(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return file.stat().st_uid == os.geteuid()
    return False


def _is_old(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - file.stat().st_ctime > _SECONDS_TO_MAP
    return False


def _mapped_files(folder: Path) -> set[str]:
    """What processes of this user map below `folder`, by the path that they see."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text().splitlines():
                if f" {folder}/" in line:
                    found.add(line.split(maxsplit=5)[5])
    return found


if __name__ == "__main__":  # what a batch script runs on every node before its first step
    remove_orphans()
