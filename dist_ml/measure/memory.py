"""How much memory this machine gives a process, and how sizes are spelled."""

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def physical_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """The machine's memory, or the control group's limit where that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return machine


def spell_bytes(number: int) -> str:
    """Whole numbers of the largest decimal unit of which there is at least one, rounded down: exact
    integers, so that no size is too large to tell.
    """
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number} {unit}"
        number //= 1000
    return f"{number} {_UNITS[-1]}"


def peak_bytes() -> int:
    """The most physical memory that this process has had at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no VmHWM")
