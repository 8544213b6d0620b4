"""The rules of Chrome's trace format that a timeline must keep to be shown as it is meant, and what
arrows must be like. Written from the format's public description, beside nothing of ours.
"""

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

_META = {"process_name": "name", "thread_name": "name",
         "process_sort_index": "sort_index", "thread_sort_index": "sort_index"}  # fmt: skip


class Shown(NamedTuple):
    """A slice, in ns, with the names of its rank's number and track."""

    rank: int
    track: str
    name: str
    start: int
    stop: int
    args: dict[str, Any]


class Arrow(NamedTuple):
    begin: Shown
    end: Shown
    nanoseconds: int  # from begin to end


class Timeline(NamedTuple):
    slices: list[Shown]
    arrows: list[Arrow]
    told: dict[str, Any]

    def of(self, rank: int, track: str) -> list[Shown]:
        """In the order of their beginnings, of all lanes."""
        own = [s for s in self.slices if s.rank == rank and s.track.rstrip(" 0123456789") == track]
        return sorted(own, key=lambda each: each.start)


def read(file: Path) -> Timeline:
    """`AssertionError` says which rule is broken."""
    with gzip.open(file) as stream:
        content = json.loads(stream.read(), parse_constant=lambda name: _fail(f"{name} is no JSON"))
    return checked(content)


def checked(content: dict[str, Any]) -> Timeline:
    assert content.keys() <= {"traceEvents", "displayTimeUnit", "otherData"}, content.keys()
    assert content["displayTimeUnit"] in ("ms", "ns")
    named: dict[str, dict[Any, Any]] = defaultdict(dict)
    shown: dict[tuple[int, int], list[Shown]] = defaultdict(list)
    ends: dict[tuple[str, str, str], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for event in content["traceEvents"]:
        place = _place(event)
        if event["ph"] == "M":
            key = place if event["name"].startswith("thread") else place[0]
            assert key not in named[event["name"]], f"named twice: {event}"
            named[event["name"]][key] = event["args"][_META[event["name"]]]
        elif event["ph"] == "X":
            assert event["dur"] >= 0, f"a negative length: {event}"
            stop = _ns(event["ts"]) + _ns(event["dur"])
            track = named["thread_name"][place]
            shown[place].append(
                Shown(place[0], track, event["name"], _ns(event["ts"]), stop, event.get("args", {}))
            )
        else:
            assert event["ph"] in ("s", "f"), f"unknown phase: {event}"
            assert event["ph"] == "s" or event["bp"] == "e", f"binds to the next slice: {event}"
            key = event["cat"], event["name"], event["id"]
            assert isinstance(event["id"], str), event
            ends[key][event["ph"]].append((place, _ns(event["ts"])))
    nameless = {rank for rank, _ in shown} ^ named["process_name"].keys()
    assert not nameless, f"ranks without a name, or with nothing else: {nameless}"
    for slices in shown.values():
        _require_nested(slices)
    arrows = [_arrow(key, found, shown) for key, found in ends.items()]
    every = [each for slices in shown.values() for each in slices]
    return Timeline(every, arrows, content["otherData"])


def _place(event: dict[str, Any]) -> tuple[int, int]:
    assert isinstance(event["name"], str), event
    assert event["name"], event
    assert math.isfinite(event["ts"]), event
    assert event["ts"] >= 0, f"before the beginning: {event}"
    assert type(event["pid"]) is type(event["tid"]) is int, event
    return event["pid"], event["tid"]


def _ns(microseconds: float) -> int:
    return round(1000 * microseconds)


def _require_nested(slices: list[Shown]) -> None:
    """Of one track: any two are apart, or one holds the other."""
    around: list[Shown] = []
    for each in sorted(slices, key=lambda s: (s.start, -s.stop)):
        while around and around[-1].stop <= each.start:
            around.pop()
        assert not around or each.stop <= around[-1].stop, f"{each} overlaps {around[-1]}"
        around.append(each)


def _arrow(key: Any, found: dict[str, list[Any]], shown: dict[Any, list[Shown]]) -> Arrow:
    assert len(found["s"]) == len(found["f"]) == 1, f"{key} has ends {dict(found)}"
    held = []
    for place, moment in (found["s"][0], found["f"][0]):
        inner = [s for s in shown[place] if s.start <= moment < max(s.stop, s.start + 1)]
        assert inner, f"{key} is bound to no slice"
        held.append(min(inner, key=lambda s: s.stop - s.start))
    return Arrow(*held, found["f"][0][1] - found["s"][0][1])


def _fail(words: str) -> Any:
    raise AssertionError(words)


def require_arrows(timeline: Timeline) -> None:
    """All go forward in time, but for the clocks' error; every send has one receive, of the same
    message; those of collectives join ranks of one group.
    """
    slack = 1000 * timeline.told["clock"]["error_us"]
    assert timeline.told["arrows"] == len(timeline.arrows)
    sent = []
    for begin, end, nanoseconds in timeline.arrows:
        assert nanoseconds >= -slack, f"{nanoseconds} ns from {begin} to {end}"
        for key in ("group", "number", "dtype"):
            assert begin.args[key] == end.args[key], f"{key} of {begin}, {end}"
        if begin.track.startswith("messages"):
            names = f"send to {end.rank}", f"receive from {begin.rank}"
            assert (begin.name, end.name) == names, f"{begin} leads to {end}"
            assert begin.args["count"] == end.args["count"], f"{begin}, {end}"
            sent.append(begin)
        else:
            assert begin.name == end.name, f"{begin} leads to {end}"
            assert begin.rank != end.rank, f"{begin} leads to itself"
    sends = [each for each in timeline.slices if each.name.startswith("send to")]
    assert sorted(map(str, sent)) == sorted(map(str, sends)), "a send without its one receive"
