"""What timelines are made of: slices, the calls that belong together, and the files."""

import gzip
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError
from dist_ml.flight.recorder import ANY_PEER, ENDED, ENTERED, Recorder
from dist_ml.trace import files, hta
from dist_ml.trace.arrows import arrow_ends
from dist_ml.trace.calls import TracedCall, traced_calls
from dist_ml.trace.clock import Clock, Reading
from dist_ml.trace.files import Part, Paths, packed
from dist_ml.trace.slices import COMPUTE, MESSAGES, STEPS, Slice, in_lanes
from tests.thread_world import run_ranks

TRUE = Clock(Reading(0), Reading(1))


def joined(size: int, body: Callable[[Communicator], Any]) -> list[list[tuple[str, str, int]]]:
    """What arrows begin and end at each rank: the call, which end, how many of them."""

    def rank(comm: Communicator) -> list[tuple[str, str, int]]:
        body(comm)
        calls = traced_calls(comm.recorder.records(), TRUE, range(size), comm.rank)
        ends = arrow_ends(comm, calls, comm.rank)
        counted = [(calls[e.call].slice.name, "from" if e.begins else "to") for e in ends]
        return sorted((*each, counted.count(each)) for each in set(counted))

    return run_ranks(size, rank)


def test_messages_lead_from_send_to_receive() -> None:
    def body(comm: Communicator) -> None:
        for tag in (4, 4, 5):
            if comm.rank == 0:
                comm.send(np.ones(2), 1, tag)
            if comm.rank == 1:
                comm.ireceive(np.ones(2), 0, tag).wait()

    assert joined(3, body) == [[("send to 1", "from", 3)], [("receive from 0", "to", 3)], []]


def test_a_collective_leads_from_who_came_last_to_all_others() -> None:
    others: dict[int, Recorder] = {}

    def body(comm: Communicator) -> None:
        if comm.rank != 1:
            others[comm.rank] = comm.recorder
        while comm.rank == 1 and sum(bool(each.records()) for each in others.values()) < 2:
            time.sleep(0.001)
        comm.barrier()

    first = [("barrier", "to", 1)]
    assert joined(3, body) == [first, [("barrier", "from", 2)], first]


def test_a_broadcast_leads_from_its_root() -> None:
    found = joined(3, lambda comm: comm.broadcast(np.ones(3), root=2))
    assert found == [[("broadcast", "to", 1)]] * 2 + [[("broadcast", "from", 2)]]


def test_an_allreduce_of_messages_has_both_kinds() -> None:
    def body(comm: Communicator) -> None:
        family.make("ring", comm)(np.ones(12, np.float32))

    found = joined(3, body)
    told = [entry for rank in found for entry in rank]
    assert sum(n for name, end, n in told if name == "allreduce by ring" and end == "from") == 2
    assert sum(n for name, end, n in told if name.startswith("send") and end == "from") == 12
    assert sum(n for name, end, n in told if name.startswith("receive") and end == "to") == 12


def test_what_was_not_traced_everywhere_has_no_arrow() -> None:
    def body(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank == 0:
            comm.recorder.ring[0] = None

    assert joined(2, body) == [[], []]


def test_a_receive_from_any_rank_has_no_arrow_and_an_open_call_is_left_out() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.send(np.ones(1), 1)
        else:
            record = comm.calls.message("receive", "float64", 1, ANY_PEER, 0)
            comm.transport.receive(np.ones(1), 0, 0)
            record[ENDED] = record[ENTERED] + 1
            comm.calls.collective("barrier")

    assert joined(2, body) == [[], []]


def test_a_collective_that_nobody_waited_in_has_no_arrow() -> None:
    def rank(comm: Communicator) -> int:
        start = 100 * comm.rank
        name = Slice("collectives", "alltoall", start, start + 50)
        call = TracedCall(name, 77, 2, (1 - comm.rank,), is_source=False)
        return len(arrow_ends(comm, [call], comm.rank)) + 10 * len(
            arrow_ends(comm, [call], comm.rank, clock_error=60)
        )

    assert run_ranks(2, rank) == [10, 10]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9))))
def test_slices_of_a_lane_are_apart_and_lanes_are_few(times: list[tuple[int, int]]) -> None:
    slices = in_lanes([Slice(MESSAGES, "m", start, start + length) for start, length in times])
    assert [(s.start, s.stop - s.start) for s in slices] == times
    for lane in {each.lane for each in slices}:
        own = sorted((s.start, s.stop) for s in slices if s.lane == lane)
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    most = max((sum(s.start <= t < s.stop for s in slices) for t in range(40)), default=0)
    longer = [s.lane for s in slices if s.stop > s.start]
    assert len(set(longer)) <= max(most, 0) + sum(s.stop == s.start for s in slices)


@pytest.mark.parametrize("capacity", [5, 8, 64])
def test_calls_between_two_marks(capacity: int) -> None:
    recorder = Recorder(0, 2, capacity)
    calls = recorder.group("data", (0, 1), 0)
    for _ in range(3):
        calls.collective("barrier", depth=1)
    first = recorder.mark()
    made = [calls.collective("barrier", depth=1) for _ in range(6)]
    last = recorder.mark()
    calls.collective("barrier", depth=1)
    held = [record for record in made if record in recorder.ring]
    assert len(held) == (4 if capacity == 5 else 6)
    assert recorder.between(first, last) == held


def test_rank_0_writes_the_parts_of_all(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path / "new", 2, 4)

    def rank(comm: Communicator) -> None:
        part = Part(packed(b'{"pid":%d}' % comm.rank), b"own %d" % comm.rank)
        files.write(comm, paths, part, {"ranks": 3})

    run_ranks(3, rank)
    content = json.loads(gzip.decompress(paths.whole.read_bytes()))
    assert content["traceEvents"] == [{"pid": 0}, {"pid": 1}, {"pid": 2}]
    assert content["otherData"] == {"ranks": 3}
    assert [paths.rank(r).read_bytes() for r in range(3)] == [b"own 0", b"own 1", b"own 2"]
    assert sorted(p.name for p in paths.whole.parent.iterdir()) == [
        "steps-2-4",
        "steps-2-4.json.gz",
    ]


def test_where_it_cannot_be_written_all_ranks_say_so_and_nothing_is_left(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path, 2, 4)
    paths.rank(1).mkdir(parents=True)  # a folder in the place of a file

    def rank(comm: Communicator) -> None:
        with pytest.raises(DataError, match=r"can't be written: .*choose another trace\.folder"):
            files.write(comm, paths, Part(packed(b"{}"), b"x"), {})

    run_ranks(3, rank)
    assert [path.name for path in tmp_path.iterdir()] == ["steps-2-4"]


def test_kernels_belong_to_operators_of_their_step() -> None:
    slices = [
        Slice(STEPS, "step 7", 1000, 9000),
        Slice(COMPUTE, "forward", 1500, 1700),
        Slice(COMPUTE, "PP:0F0", 1400, 1800),
        Slice(COMPUTE, "exchange", 2000, 3000),
        Slice(MESSAGES, "send to 1", 4000, 6500, lane=1),
    ]
    text = hta.rank_file(3, 4, slices, 500)
    assert re.findall(rb'"rank":\s+(\d+)', text) == [b"3"]  # as its version 0.5 looks for it
    content = json.loads(text)
    assert content["distributedInfo"] == {"backend": "mpi", "rank": 3, "world_size": 4}
    events = content["traceEvents"]
    assert [event["name"] for event in events] == [
        "ProfilerStep#7", "forward", "forward", "send to 1", "ncclKernel_send_to_1"
    ]  # fmt: skip
    assert all(type(event["ts"]) is type(event["dur"]) is int for event in events)
    assert all(event["dur"] > 0 for event in events)
    kernels = [event for event in events if event["cat"] == "kernel"]
    hosts = {e["args"]["correlation"]: e for e in events if e["cat"] == "cpu_op"}
    assert len({kernel["args"]["stream"] for kernel in kernels}) == 2
    for kernel in kernels:
        assert hosts[kernel["args"]["correlation"]]["ts"] == kernel["ts"]
        assert kernel["args"]["stream"] > 0
