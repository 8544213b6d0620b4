"""The files of a timeline: rank 0 writes what each rank sends it, one rank after the other, so that
it never holds more than one rank's part.

    steps-2-11.json.gz              all ranks, for Perfetto and Chrome
    steps-2-11/rank-0000.json.gz    one a rank, for HolisticTraceAnalysis
"""

import contextlib
import gzip
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError

_TAG = 12
_LEVEL = 4  # of compression: beyond, it takes longer and gains little


class Paths(NamedTuple):
    """Of the timeline of some steps."""

    whole: Path
    by_rank: Path  # a folder

    @classmethod
    def of(cls, folder: Path, first: int, last: int) -> "Paths":
        name = f"steps-{first}-{last}"
        return cls(folder / f"{name}.json.gz", folder / name)

    def rank(self, rank: int) -> Path:
        return self.by_rank / f"rank-{rank:04}.json.gz"


class Part(NamedTuple):
    """What one rank brings, packed: its events, encoded, and the file that it alone has."""

    events: bytes
    own_file: bytes


def packed(content: bytes) -> bytes:
    """As it is sent and written."""
    return gzip.compress(content, _LEVEL, mtime=0)


def write(comm: Communicator, paths: Paths, part: Part, told: Mapping[str, Any]) -> None:
    """Write all parts; `told` is what rank 0 says of the whole. Collective; `DataError` on all
    ranks where rank 0 can't write.
    """
    failure: list[OSError] = []
    if comm.rank:
        for content in part:
            comm.send(np.frombuffer(bytearray(content), np.uint8), 0, _TAG)
    else:
        parts = _received(comm, part)
        try:
            _write(paths, parts, told)
        except OSError as error:
            failure.append(error)
        for _ in parts:  # the others must get rid of theirs
            pass

    def tell() -> None:
        for error in failure:
            raise DataError(
                f"the timeline {paths.whole} can't be written: {error.strerror or error}; make "
                "room there, or choose another trace.folder"
            ) from error

    from_root(comm, tell)


def _received(comm: Communicator, own: Part) -> Iterator[Part]:
    yield own
    for rank in range(1, comm.size):
        events, own_file = (comm.receive_message("uint8", rank, _TAG).tobytes() for _ in own)
        yield Part(events, own_file)


def _write(paths: Paths, parts: Iterator[Part], told: Mapping[str, Any]) -> None:
    paths.by_rank.mkdir(parents=True, exist_ok=True)
    temporary = paths.whole.with_name(f".{paths.whole.name}.{os.getpid()}")
    try:
        with gzip.open(temporary, "wb", _LEVEL) as whole:
            whole.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
            for rank, part in enumerate(parts):
                if rank:
                    whole.write(b",\n")
                with gzip.open(io.BytesIO(part.events)) as events:
                    shutil.copyfileobj(events, whole)
                paths.rank(rank).write_bytes(part.own_file)
            whole.write(b'\n],"otherData":' + json.dumps(told).encode() + b"}\n")
        temporary.replace(paths.whole)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
