"""Files that killed ranks leave in /dev/shm.

Both MPIs map shared segments by name and remove them in MPI_Finalize, so ranks that were killed leave theirs: some megabytes of
memory each, and under MPICH a requeued Slurm job that finds its own old segment fails to start.
"""

import contextlib
import os
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
_NAMES = ("mpich_shm_*", "sm_segment.*")
_SECONDS_TO_MAP = 2.0  # a younger file may be one that its rank is about to map


def remove_orphans(folder: Path = FOLDER) -> list[Path]:
    """Remove MPI's segments in `folder` that are this user's and that no process maps; gives what was removed."""
    candidates = [file for name in _NAMES for file in folder.glob(name) if _is_own_and_old(file)]
    if not candidates:
        return []
    mapped = _mapped_files(folder)
    orphans = [file for file in candidates if str(file) not in mapped]
    for file in orphans:
        with contextlib.suppress(OSError):
            file.unlink()
    return orphans


def _is_own_and_old(file: Path) -> bool:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_uid == os.geteuid() and time.time() - status.st_ctime > _SECONDS_TO_MAP
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
