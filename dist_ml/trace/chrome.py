"""One rank's part of a timeline as trace events of Chrome's JSON format, which Perfetto reads:

    {"ph": "X", "pid": rank, "tid": track, "ts": start, "dur": …, "name": …, "cat": …, "args": …}
    {"ph": "s" or "f", "id": …, "pid": …, "tid": …, "ts": …, …}     an arrow begins, or ends
    {"ph": "M", "pid": …, "name": "thread_name", …}                 what ranks and tracks are called

Times are microseconds, with nanoseconds behind the point.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dist_ml.trace.arrows import End
from dist_ml.trace.slices import TRACKS, Slice


def events(
    rank: int,
    label: str,
    slices: Sequence[Slice],
    calls: Sequence[Slice],
    ends: Sequence[End],
    start: int,
) -> Iterator[dict[str, Any]]:
    """Of rank `rank`, which is shown as `label`; `ends` are at `calls`. `start` is where the
    timeline begins, in ns of rank 0's clock.
    """
    tracks = sorted({(TRACKS.index(each.track), each.lane) for each in (*slices, *calls)})
    tids = {track: tid for tid, track in enumerate(tracks, 1)}
    yield _named("process_name", rank, 0, name=label)
    yield _named("process_sort_index", rank, 0, sort_index=rank)
    for (track, lane), tid in tids.items():
        name = TRACKS[track] if not lane else f"{TRACKS[track]} {lane + 1}"
        yield _named("thread_name", rank, tid, name=name)
        yield _named("thread_sort_index", rank, tid, sort_index=tid)

    def place(each: Slice) -> dict[str, Any]:
        return {"pid": rank, "tid": tids[TRACKS.index(each.track), each.lane], "cat": each.track}

    for each in sorted((*slices, *calls), key=lambda s: (s.start, -s.stop)):
        yield {
            "ph": "X",
            **place(each),
            "ts": (each.start - start) / 1000,
            "dur": (each.stop - each.start) / 1000,
            "name": each.name,
            **({"args": each.arguments} if each.arguments else {}),
        }
    for end in ends:
        each = calls[end.call]
        moment = each.start if end.begins else max(each.start, each.stop - 1)  # inside the slice
        yield {
            "ph": "s" if end.begins else "f",
            **({} if end.begins else {"bp": "e"}),
            **place(each),
            "ts": (moment - start) / 1000,
            "id": f"{end.name:#x}",
            "name": each.track,
        }


def _named(what: str, rank: int, tid: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": tid, "ts": 0, "name": what, "args": arguments}


def encoded(found: Iterator[dict[str, Any]]) -> bytes:
    """One a line, with commas between."""
    return ",\n".join(json.dumps(event, separators=(",", ":")) for event in found).encode()
