"""A rank's flight record as a file: `log/flight-0002.json` in the run folder.

    {"format": 1, "rank": 2, "size": 4, "host": …, "pid": …, "reason": …, "written": …, "step": 12,
     "groups": {"data 0-1-2-3 #1": {"ranks": [0, 1, 2, 3], "collectives": 57}, …},
     "columns": ["number", "group", …], "calls": [[…], …],        one row a call, the oldest first
     "threads": {"MainThread": ["train/step.py:91 run", …], …}}   stacks, outermost first

Times are seconds since 1970 by the rank's own clock; null: not yet.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from types import CodeType
from typing import Any, get_type_hints

from dist_ml.errors import DataError
from dist_ml.flight import recorder as at
from dist_ml.flight.flight import Call, Flight, Group, short_path
from dist_ml.flight.recorder import Record, Recorder

_FORMAT = 1
HANGS = "hang"  # a file that says: the job is being ended
_PATTERN = "flight-*.json"
_COLUMNS = get_type_hints(Call)


def file_of(folder: Path, rank: int) -> Path:
    return folder / f"flight-{rank:04}.json"


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(_PATTERN))


def forget(folder: Path) -> None:
    """A job that failed goes on: its records have nothing to tell any more."""
    for file in [*files_in(folder), folder / HANGS]:
        file.unlink(missing_ok=True)


def write(recorder: Recorder, reason: str) -> bool:
    """Write what is recorded, and all threads' stacks, to the recorder's folder: was it? Never
    raises: whoever reports a failure must reach its end. About 50 ms for a full ring.
    """
    if recorder.folder is None:
        return False
    try:
        flight = taken(recorder, reason)
        content = {"format": _FORMAT, **asdict(flight), "columns": [*_COLUMNS]}
        content["calls"] = [astuple(call) for call in flight.calls]
        file = file_of(recorder.folder, recorder.rank)
        temporary = file.with_name(f".{file.name}.{threading.get_ident()}")
        temporary.write_text(json.dumps(content))
        temporary.replace(file)
    except Exception:  # a full disk, a record that another thread is changing
        return False
    return True


def taken(recorder: Recorder, reason: str) -> Flight:
    """The state of the recorder now."""
    ahead = time.time_ns() - time.monotonic_ns()
    records = recorder.records()
    groups = {group.name: group for group in recorder.groups()}
    groups |= {record[at.GROUP].name: record[at.GROUP] for record in records}
    return Flight(
        recorder.rank,
        recorder.size,
        socket.gethostname(),
        os.getpid(),
        reason,
        time.time(),
        recorder.step,
        {name: Group(group.members, group.collectives) for name, group in groups.items()},
        tuple(_call(record, ahead) for record in records),
        dict(_stacks()),
    )


def _call(record: Record, ahead_ns: int) -> Call:
    group, peer, code = record[at.GROUP], record[at.PEER], record[at.CODE]

    def seconds(moment: int) -> float | None:
        return (moment + ahead_ns) / 1e9 if moment else None

    entered = seconds(record[at.ENTERED])
    assert entered is not None
    return Call(
        record[at.NUMBER],
        group.name,
        record[at.SEQUENCE],
        record[at.CALL],
        record[at.DETAIL],
        record[at.DTYPE],
        record[at.COUNT],
        peer if peer is None or peer == at.ANY_PEER else group.members[peer],
        code.co_filename,
        _line(code, record[at.INSTRUCTION]),
        code.co_qualname,
        entered,
        seconds(record[at.WAITED]),
        seconds(record[at.ENDED]),
    )


def _line(code: CodeType, instruction: int) -> int:
    for start, stop, line in code.co_lines():
        if start <= instruction < stop and line is not None:
            return line
    return code.co_firstlineno


def _stacks() -> Iterator[tuple[str, tuple[str, ...]]]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            stack = [
                f"{short_path(f.f_code.co_filename)}:{line} {f.f_code.co_name}"
                for f, line in traceback.walk_stack(frame)
            ]
            yield names.get(ident) or f"thread {ident}", tuple(reversed(stack))


def read(file: Path) -> Flight:
    """`DataError` where the file can't be read, or isn't what `write` leaves."""
    try:
        content = json.loads(file.read_text())
        if content["format"] != _FORMAT:
            raise DataError(f"{file} has format {content['format']}; this reads {_FORMAT}")
        if content["columns"] != [*_COLUMNS]:
            raise ValueError("other columns")
        return _flight(content)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} is no flight record of a rank; was it cut short?") from error


def read_folder(folder: Path) -> dict[int, Flight]:
    """All ranks' records in a run's `log`, by rank; none where no rank wrote one."""
    flights = [read(file) for file in files_in(folder)]
    return {flight.rank: flight for flight in flights}


def _flight(content: dict[str, Any]) -> Flight:
    flight = Flight(
        int(content["rank"]),
        int(content["size"]),
        str(content["host"]),
        int(content["pid"]),
        str(content["reason"]),
        float(content["written"]),
        content["step"],
        {
            str(name): Group(tuple(map(int, group["ranks"])), int(group["collectives"]))
            for name, group in content["groups"].items()
        },
        tuple(_row(row) for row in content["calls"]),
        {str(name): tuple(map(str, stack)) for name, stack in content["threads"].items()},
    )
    for call in flight.calls:
        flight.groups[call.group]  # each call's is there
    return flight


def _row(values: list[Any]) -> Call:
    for value, (name, hint) in zip(values, _COLUMNS.items(), strict=True):
        if not isinstance(value, hint):
            raise TypeError(f"{name} is {value!r}")
    return Call(*values)
