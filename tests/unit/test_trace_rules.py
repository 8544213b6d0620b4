"""The rules by which timelines are judged in tests find what is wrong."""

from typing import Any

import pytest

from tests import trace_rules

ARGS = {"group": "data 0-1 #1", "number": 1, "dtype": "float32", "count": 3}


def named(rank: int, tid: int, track: str) -> list[dict[str, Any]]:
    return [
        {"ph": "M", "pid": rank, "tid": 0, "ts": 0, "name": "process_name", "args": {"name": "r"}},
        {"ph": "M", "pid": rank, "tid": tid, "ts": 0, "name": "thread_name",
         "args": {"name": track}},
    ]  # fmt: skip


def placed(rank: int, ph: str, name: str, ts: float, **more: Any) -> dict[str, Any]:
    return {"ph": ph, "pid": rank, "tid": 1, "ts": ts, "name": name, "cat": "messages", **more}


def content() -> dict[str, Any]:
    """A message from rank 0 to rank 1, sent from 1 to 2 µs, received from 0 to 4."""
    events = [
        *named(0, 1, "messages"),
        *named(1, 1, "messages"),
        placed(0, "X", "send to 1", 1.0, dur=1.0, args=ARGS),
        placed(1, "X", "receive from 0", 0.0, dur=4.0, args=ARGS),
        placed(0, "s", "m", 1.0, id="0x1"),
        placed(1, "f", "m", 3.999, id="0x1", bp="e"),
    ]
    told = {"clock": {"error_us": 0.5}, "arrows": 1}
    return {"displayTimeUnit": "ms", "traceEvents": events, "otherData": told}


def judge(given: dict[str, Any]) -> None:
    trace_rules.require_arrows(trace_rules.checked(given))


def test_a_message_is_right() -> None:
    timeline = trace_rules.checked(content())
    assert [arrow.nanoseconds for arrow in timeline.arrows] == [2999]
    judge(content())


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (4, {"dur": -1.0}, "a negative length"),
        (4, {"ts": -1.0}, "before the beginning"),
        (4, {"ph": "B"}, "unknown phase"),
        (4, {"tid": 7}, "7"),
        (6, {"id": "0x2"}, "has ends"),
        (6, {"ts": 2.5}, "bound to no slice"),
        (7, {"bp": "s"}, "binds to the next slice"),
        (7, {"ts": 0.2}, "-800 ns from"),
        (5, {"name": "receive from 2"}, "leads to"),
        (5, {"args": {**ARGS, "number": 2}}, "number of"),
        (2, {"name": "thread_name"}, "ranks without a name"),
        (2, {"pid": 0}, "named twice"),
    ],
)
def test_what_is_wrong_is_found(number: int, change: dict[str, Any], words: str) -> None:
    broken = content()
    broken["traceEvents"][number] |= change
    with pytest.raises((AssertionError, KeyError), match=words):
        judge(broken)


def test_a_backward_arrow_within_the_clocks_error_is_right() -> None:
    close = content()
    close["traceEvents"][7]["ts"] = 0.5
    judge(close)


def test_a_send_that_nobody_received_is_found() -> None:
    lonely = content()
    del lonely["traceEvents"][6:]
    lonely["otherData"]["arrows"] = 0
    with pytest.raises(AssertionError, match="without its one receive"):
        judge(lonely)


def test_slices_that_overlap_are_found() -> None:
    crossed = content()
    crossed["traceEvents"].append(placed(0, "X", "x", 1.5, dur=1.0))
    with pytest.raises(AssertionError, match="overlaps"):
        judge(crossed)
