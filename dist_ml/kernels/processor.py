"""Which processor this is, and which instructions it knows."""

import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def flags() -> frozenset[str]:
    """As /proc/cpuinfo spells them; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    )


@lru_cache(maxsize=1)
def name() -> str:
    """What the cache of measurements is kept under: model name, family, model and stepping of the
    first core.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(
        reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line])
    )
    return " ".join(
        values.get(key, "?") for key in ("model name", "cpu family", "model", "stepping")
    )
