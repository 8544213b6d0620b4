"""Saving, while the ranks wait."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.save_job import SaveJob
from dist_ml.checkpoint.tensor_file import bytes_of
from dist_ml.comm.communicator import Communicator


def save(
    folder: Path,
    step: int,
    pieces: Sequence[Piece],
    header: Mapping[str, Any],
    comm: Communicator,
    keep: Keep | None = None,
    files: Files | None = None,
) -> Path:
    """Write checkpoint `step` into `folder`, which all ranks see, and return where it is.
    Collective.

    `pieces` are what this rank holds; the rest is the same on all ranks. The header is JSON. Each
    distinct box is written once, and on the disk when this returns; then what `keep` doesn't keep
    is removed. A checkpoint of the same step is replaced. Memory: none, but for a piece that isn't
    dense. `DataError` on all ranks where it can't be written; older ones are as they were.
    """
    job = SaveJob(folder, step, pieces, header, comm, keep or Keep(), files or Files())
    job.write(bytes_of(piece.values) for piece in job.own)
    job.gather()
    job.commit()
    return job.finish()
