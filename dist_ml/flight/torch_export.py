"""Flight records in the form of torch's flight recorder, format 2.10, for its analyser:

    python -m torch.distributed.flight_recorder.fr_trace FOLDER --prefix rank_

Torch matches all calls of a process group by their number in it, so the messages of each sender,
receiver and tag become a group of two. It knows backends by name: ours goes by gloo's. Where a ring
has overwritten what others still hold, the export begins where all hold it.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dist_ml.errors import DataError
from dist_ml.flight.flight import Call, Flight
from dist_ml.flight.recorder import ANY_PEER

VERSION = "2.10"
PREFIX = "rank_"
# By the first word of ours; what is not here goes by its own name. Torch checks the sizes of its
# collectives with equal shares only, which ours need not have.
_NAMES = {
    "allreduce": "all_reduce",
    "reduce_scatter": "reduce_scatter_v",
    "allgather": "all_gather_v",
    "allgather_objects": "all_gather_v",
    "alltoall": "all_to_all",
    "broadcast_object": "broadcast",
    "split_by_node": "split",
}


class _Place(NamedTuple):
    """A process group of torch's: the name and the world's ranks."""

    name: str
    ranks: tuple[int, ...]


def export(flights: Mapping[int, Flight], folder: Path) -> list[Path]:
    """Write one file a rank into `folder`, which is made; they are pickles of plain values, as the
    analyser reads. `DataError` where that can't be done.
    """
    starts = _starts(flights)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank, flight in flights.items():
            files.append(folder / f"{PREFIX}{rank}")
            files[-1].write_bytes(pickle.dumps(dump(flight, starts)))
    except OSError as error:
        raise DataError(f"{folder} can't be written: {error.strerror or error}") from error
    return files


def dump(flight: Flight, starts: Mapping[_Place, int]) -> dict[str, Any]:
    """One rank's, from the calls on that `starts` names by group."""
    kept = [
        (call, place)
        for call in flight.calls
        if (place := _place(flight, call)) is not None and call.sequence >= starts.get(place, 1)
    ]
    places = {place for _, place in kept}
    places |= {_Place(name, group.ranks) for name, group in flight.groups.items()}
    return {
        "version": VERSION,
        "entries": [_entry(call, place, n) for n, (call, place) in enumerate(kept)],
        "pg_config": {
            place.name: {"name": place.name, "desc": "dist_ml", "ranks": str([*place.ranks])}
            for place in sorted(places)
        },
    }


def _starts(flights: Mapping[int, Flight]) -> dict[_Place, int]:
    """By group, the first call that all members hold; a ring that was never full holds all."""
    starts: dict[_Place, int] = {}
    for flight in flights.values():
        if not flight.calls or flight.calls[0].number == 0:
            continue
        first = {
            _Place(name, group.ranks): group.collectives + 1
            for name, group in flight.groups.items()
        }
        for call in reversed(flight.calls):
            if (place := _place(flight, call)) is not None:
                first[place] = call.sequence
        for place, sequence in first.items():
            starts[place] = max(starts.get(place, 1), sequence)
    return starts


def _place(flight: Flight, call: Call) -> _Place | None:
    """None for a message whose sender or size is not known yet."""
    if call.peer is None:
        return _Place(call.group, flight.groups[call.group].ranks)
    if call.peer in (ANY_PEER, flight.rank) or call.count is None:
        return None
    source, target = _ends(flight.rank, call.peer, call)
    name = f"{call.group} {source}->{target} tag {call.detail}"
    return _Place(name, (min(source, target), max(source, target)))


def _ends(rank: int, peer: int, call: Call) -> tuple[int, int]:
    return (rank, peer) if call.call == "send" else (peer, rank)


def _entry(call: Call, place: _Place, number: int) -> dict[str, Any]:
    sizes, dtypes = [[call.count or 0]], [call.dtype]
    waited = call.waited or call.entered
    return {
        "record_id": number,
        "pg_id": 0,
        "process_group": (place.name, "dist_ml"),
        "collective_seq_id": call.sequence,
        "p2p_seq_id": call.sequence if call.is_message else 0,
        "op_id": number,
        "is_p2p": call.is_message,
        "profiling_name": f"gloo:{_name(call, place)}",
        "input_sizes": sizes,
        "input_dtypes": dtypes,
        "output_sizes": sizes,
        "output_dtypes": dtypes,
        "state": call.state,
        "retired": call.state == "completed",
        "timeout_ms": 0,
        "time_created_ns": int(call.entered * 1e9),
        "time_discovered_started_ns": None if call.waited is None else int(waited * 1e9),
        "time_discovered_completed_ns": None if call.ended is None else int(call.ended * 1e9),
        "duration_ms": None if call.ended is None else 1000 * (call.ended - call.entered),
        "frames": [{"name": call.function, "filename": call.file, "line": call.line}],
    }


def _name(call: Call, place: _Place) -> str:
    """Of a message, torch counts ranks within its group."""
    if not call.is_message:
        word = call.call.split()[0]
        return _NAMES.get(word, word)
    other = place.ranks.index(call.peer) if call.peer is not None else 0
    own = 1 - other
    return f"send {own}->{other}" if call.call == "send" else f"recv {own}<-{other}"
