"""Latencies by size in the text of the OSU micro-benchmarks (osu_allreduce, 7.x), so that what
parses theirs (ReFrame, spreadsheets, scripts) reads ours.

    # OSU MPI Allreduce Latency Test v7.5
    # Datatype: MPI_FLOAT.
    # Size       Avg Latency(us)
    8                       1.63

Comments begin with #; a row is the bytes of a rank's buffer, and microseconds a call.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_VERSION = "7.5"  # whose text it is
_SIZE_WIDTH, _FIELD_WIDTH = 10, 18


class Series(NamedTuple):
    """Microseconds a call of one candidate by bytes; `title` tells it from others."""

    title: str
    microseconds: Mapping[int, float]


def allreduce_text(series: Sequence[Series]) -> str:
    """A table for each, with a line above it that says whose it is."""
    return "\n".join(_table(each) for each in series)


def _table(series: Series) -> str:
    rows = [
        f"{size:<{_SIZE_WIDTH}d}{latency:{_FIELD_WIDTH}.2f}"
        for size, latency in sorted(series.microseconds.items())
    ]
    return "\n".join(
        [
            f"# dist-ml bench: {series.title}; medians over rounds, of the slowest rank",
            "",
            f"# OSU MPI Allreduce Latency Test v{_VERSION}",
            "# Datatype: MPI_FLOAT.",
            f"# {'Size':<{_SIZE_WIDTH - 2}}{'Avg Latency(us)':>{_FIELD_WIDTH}}",
            *rows,
        ]
    )
