"""Torch's flight-recorder analyser, in this process: whom it blames."""

import gc
import logging
from pathlib import Path
from typing import NamedTuple

from dist_ml.errors import DataError, MachineError
from dist_ml.flight import torch_export


class Blamed(NamedTuple):
    """The ranks that missed a call of a group, or made another one, by its number."""

    sequence: int
    ranks: set[int]


def blamed(folder: Path) -> list[Blamed]:
    """Whom it blames for which calls of an export, in its order; empty where it blames nobody, as
    where ranks left no record.

    `MachineError` where torch has no analyser, `DataError` where it refuses the files.
    """
    logging.getLogger("Flight Recorder").disabled = True  # it talks to stderr
    try:
        from torch.distributed.flight_recorder.components.builder import build_db
        from torch.distributed.flight_recorder.components.config_manager import JobConfig
        from torch.distributed.flight_recorder.components.loader import read_dir
    except ImportError as error:
        raise MachineError(f"this torch has no flight-recorder analyser ({error})") from error
    options = [str(folder), "--prefix", torch_export.PREFIX, "--allow-incomplete-ranks"]
    arguments = JobConfig().parse_args(options)
    try:
        details, version = read_dir(arguments)
        calls = build_db(details, arguments, version).collectives
    except (AssertionError, LookupError, ValueError) as error:
        raise DataError(f"torch's analyser refuses {folder}: {error!r}") from error
    finally:
        gc.enable()  # which it disables
    found = (
        Blamed(
            call.collective_seq_id,
            {*(call.missing_ranks or ()), *(call.mismatch_collectives or ())},
        )
        for call in calls
    )
    return [blame for blame in found if blame.ranks]
