"""One rank's timeline as HolisticTraceAnalysis reads it: like torch.profiler's of a rank with a
GPU, on which what was computed ran as kernels of one stream, and what was communicated on others.

    steps                "ProfilerStep#12", by which it tells steps apart
    compute              a kernel by its name
    collectives, messages   "ncclKernel_allreduce", since it knows communication by that name alone

A kernel is joined to an operator of the host by `correlation`, and counts to the step that the
latter lies in. Times are whole microseconds, as it rounds them otherwise, to lengths below 0.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dist_ml.trace.slices import COLLECTIVES, COMPUTE, MESSAGES, STEPS, Slice

_WAITING = ("wait", "exchange")  # phases in which nothing is computed
_COMPUTE, _COMMUNICATION = 1, 2  # streams


def events(rank: int, slices: Sequence[Slice], start: int) -> Iterator[dict[str, Any]]:
    """All that it asks for; phases inside pipeline actions, these themselves not."""
    for number, each in enumerate(slices, 1):
        begin = max(0, each.start - start) // 1000
        stop = max(begin + 1, (each.stop - start) // 1000)
        times = {"ph": "X", "pid": rank, "ts": begin, "dur": stop - begin}
        if each.track == STEPS:
            name = f"ProfilerStep#{each.name.split()[-1]}"
            yield {**times, "tid": _COMPUTE, "cat": "user_annotation", "name": name, "args": {}}
            continue
        stream = _stream(each)
        if stream is None:
            continue
        joined = {"correlation": number}
        yield {**times, "tid": stream, "cat": "cpu_op", "name": each.name, "args": joined}
        name = each.name if stream == _COMPUTE else f"ncclKernel_{each.name.replace(' ', '_')}"
        arguments = {"device": 0, "stream": stream, **joined}
        yield {**times, "tid": stream, "cat": "kernel", "name": name, "args": arguments}


def _stream(each: Slice) -> int | None:
    if each.track == COMPUTE and each.name not in _WAITING and not each.name.startswith("PP:"):
        return _COMPUTE
    if each.track == COLLECTIVES:
        return _COMMUNICATION + 2 * each.lane
    if each.track == MESSAGES:
        return _COMMUNICATION + 2 * each.lane + 1
    return None


def rank_file(rank: int, size: int, slices: Sequence[Slice], start: int) -> bytes:
    """The file of rank `rank` of `size`."""
    head = {
        "schemaVersion": 1,
        "distributedInfo": {"backend": "mpi", "rank": rank, "world_size": size},
        "deviceProperties": [],
    }
    # With blanks behind colons: that is how it finds the rank.
    listed = ",\n".join(json.dumps(event) for event in events(rank, slices, start))
    return f'{json.dumps(head)[:-1]}, "traceEvents": [\n{listed}\n]}}'.encode()
