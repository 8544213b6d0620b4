"""Torch's flight-recorder analyser, in this process."""

import gc
import logging
from pathlib import Path

import pytest


def analysed(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What it says of the files of an export; skips where torch has no analyser."""
    trace = pytest.importorskip("torch.distributed.flight_recorder.fr_trace")
    from torch.distributed.flight_recorder.components.builder import build_db
    from torch.distributed.flight_recorder.components.config_manager import JobConfig

    caplog.set_level(logging.INFO, "Flight Recorder")
    caplog.clear()
    arguments = JobConfig().parse_args([str(folder), "--prefix", "rank_"])
    try:
        details, version = trace.read_dir(arguments)
    finally:
        gc.enable()  # which it disables
    build_db(details, arguments, version)
    return caplog.text
