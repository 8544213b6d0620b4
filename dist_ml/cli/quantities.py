"""Numbers on a command line, checked where they are read."""

import argparse
import math
import re

from dist_ml.launch.mpiexec import cores

_RANKS_PER_CORE = 256  # more than any test of scaling wants, and less than fills the process table


def number_of_ranks(text: str) -> int:
    """1 or more, and not more than this machine can start."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of ranks; give 1 or more")
    most = _RANKS_PER_CORE * cores()
    if int(text) > most:
        raise argparse.ArgumentTypeError(
            f"{text} ranks are more than the {cores()} cores here can run; give at most {most}"
        )
    return int(text)


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of them; give 1 or more")
    return int(text)


def time_limit(text: str) -> float:
    """Seconds: finite and above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(
            f"{text} is not a time limit; give seconds above 0 and below 1e9"
        )
    return seconds


def size_in_bytes(text: str) -> int:
    """A number with a decimal unit: 64GB."""
    units = {unit.lower(): 1000**power for power, unit in enumerate(("B", "kB", "MB", "GB", "TB"))}
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([kmgt]?b)", text.lower(), re.ASCII)
    size = int(float(match[1]) * units[match[2]]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a size; give a number and a unit, as 64GB")
    return size
