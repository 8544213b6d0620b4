"""Ending a job that hangs, or that one rank ends: all ranks write their flight records, and what
they say is put into words.
"""

import contextlib
import socket
import time
from pathlib import Path

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import is_alive, is_stopped, tell_to_record
from dist_ml.errors import DataError
from dist_ml.flight import record_file
from dist_ml.flight.diagnosis import Finding, diagnose
from dist_ml.flight.flight import Flight
from dist_ml.flight.recorder import Recorder

_LOOK_SECONDS = 0.05
_TOGETHER_SECONDS = 30.0  # in which ranks write that one failure is of


def write_all(
    world: Communicator, reason: str, wait_seconds: float, other_nodes: bool = False
) -> Finding | None:
    """Write this rank's record, have those of its node write theirs, wait for all that may come
    (with `other_nodes` of all ranks that aren't known to be dead or stopped), and judge them. None
    where there is no folder for it. Never raises.

    Reads P files of up to 0.5 MB, so one rank does it, not all.
    """
    recorder = world.recorder
    if not write(world, reason):
        return None
    assert recorder.folder is not None
    expected = 1 + tell_to_record(world.transport.peers)
    if other_nodes:
        expected = recorder.size - len(_away(world))
    deadline = time.monotonic() + wait_seconds
    while len(_fresh(recorder)) < expected and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    with contextlib.suppress(Exception):  # what ends the job must go on
        flights = [_read(file) for file in _fresh(recorder)]
        return diagnose({f.rank: f for f in flights if f is not None}, _away(world))
    return None


def write(world: Communicator, reason: str) -> bool:
    """Write this rank's record, the last one; was it?"""
    world.recorder.is_final = True
    return record_file.write(world.recorder, reason)


def _fresh(recorder: Recorder) -> list[Path]:
    """The records that were not written long before this rank's, by the file system's clock."""
    assert recorder.folder is not None
    written = {}
    for file in record_file.files_in(recorder.folder):
        with contextlib.suppress(OSError):
            written[file] = file.stat().st_mtime
    own = written.get(record_file.file_of(recorder.folder, recorder.rank), 0.0)
    return [file for file, moment in written.items() if moment > own - _TOGETHER_SECONDS]


def _read(file: Path) -> Flight | None:
    with contextlib.suppress(DataError):
        return record_file.read(file)
    return None


def _away(world: Communicator) -> dict[int, str]:
    """What is known of ranks of this node that can't write."""
    told, host = {}, socket.gethostname()
    for peer in world.transport.peers:
        if is_stopped(peer):
            told[peer.rank] = (
                f"its process {peer.pid} on {host} is stopped (SIGSTOP, or a debugger)"
            )
        elif not is_alive(peer):
            told[peer.rank] = f"its process {peer.pid} on {host} has died"
    return told
