"""What is recorded of calls, how it is written and read, and what torch's analyser reads of it."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench.torch_analyser import Blamed, blamed
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError
from dist_ml.flight import record_file, torch_export
from dist_ml.flight.diagnosis import diagnose
from dist_ml.flight.flight import Flight
from dist_ml.flight.recorder import ENDED, NUMBER, Recorder
from tests.thread_world import run_ranks


def taken_after(body: Any, size: int = 2) -> dict[int, Flight]:
    """The records of ranks that have run `body(comm)`, which may leave calls open."""

    def rank(comm: Communicator) -> Flight:
        body(comm)
        return record_file.taken(comm.recorder, "a test")

    return dict(enumerate(run_ranks(size, rank)))


def test_each_call_is_recorded_with_its_caller() -> None:
    def body(comm: Communicator) -> None:
        comm.allreduce(torch.ones(3))
        comm.broadcast(np.zeros(5), root=1)
        comm.barrier()

    flight = taken_after(body)[1]
    assert [str(call) for call in flight.calls] == [
        "allreduce sum float32[3] (number 1 of data 0-1 #1)",
        "broadcast from 1 float64[5] (number 2 of data 0-1 #1)",
        "barrier (number 3 of data 0-1 #1)",
    ]
    first = body.__code__.co_firstlineno
    assert [call.line for call in flight.calls] == [first + 1, first + 2, first + 3]
    assert {call.file for call in flight.calls} == {__file__}
    assert {call.state for call in flight.calls} == {"completed"}
    assert all(0 <= call.ended - call.entered < 10 for call in flight.calls if call.ended)


def test_messages_are_numbered_by_peer_and_tag() -> None:
    def body(comm: Communicator) -> None:
        for tag in (4, 5, 4):
            if comm.rank == 0:
                comm.send(torch.ones(2), 1, tag)
            else:
                comm.receive(torch.ones(2), 0, tag)

    sent, received = taken_after(body).values()
    assert [(c.call, c.peer, c.detail, c.sequence) for c in sent.calls] == [
        ("send", 1, 4, 1),
        ("send", 1, 5, 1),
        ("send", 1, 4, 2),
    ]
    assert [(c.detail, c.sequence) for c in received.calls] == [(4, 1), (5, 1), (4, 2)]


def test_a_request_is_scheduled_then_started_then_completed() -> None:
    def body(comm: Communicator) -> list[str]:
        states = []
        other = 1 - comm.rank
        request = comm.ireceive(torch.ones(2), other)
        states.append(record_file.taken(comm.recorder, "").calls[-1].state)
        if comm.rank == 0:  # rank 1 sends when this one waits
            watch = threading.Timer(0.2, lambda: comm.isend(torch.ones(2), other))
            reader = threading.Timer(
                0.1, lambda: states.append(record_file.taken(comm.recorder, "").calls[-1].state)
            )
            watch.start()
            reader.start()
        else:
            threading.Event().wait(0.2)
            sending = comm.isend(torch.ones(2), other)
        request.wait()
        if comm.rank == 1:
            sending.wait()
        states.append(record_file.taken(comm.recorder, "").calls[0].state)
        return states

    assert run_ranks(2, body, sends="buffered")[0] == ["scheduled", "started", "completed"]


@pytest.mark.parametrize("name", ["ring", "shared_memory", "rabenseifner"])
def test_an_allreduce_of_our_own_is_one_collective_beside_its_messages(name: str) -> None:
    def body(comm: Communicator) -> None:
        reduce = family.make(name, comm)
        x = reduce.allocate(8, torch.float32)
        for _ in range(3):
            reduce(x)
        reduce.free()

    for flight in taken_after(body).values():
        own = [c for c in flight.calls if c.call == f"allreduce by {name}"]
        assert [(c.detail, c.dtype, c.count, c.state) for c in own] == [
            ("sum", "float32", 8, "completed")
        ] * 3


def test_the_ring_keeps_the_last_calls() -> None:
    recorder = Recorder(0, 2, capacity=4)
    group = recorder.group("data", (0, 1), 0)
    for _ in range(6):
        group.collective("barrier", depth=1)[ENDED] = 1
    assert [record[NUMBER] for record in recorder.records()] == [2, 3, 4, 5]
    assert group.collectives == 6


def test_a_lone_rank_records_nothing() -> None:
    recorder = Recorder()
    recorder.group("data", (0,), 0).collective("barrier", depth=1)
    assert recorder.records() == []


def test_groups_have_one_name_on_all_their_ranks() -> None:
    def body(comm: Communicator) -> list[str]:
        halves = [comm.split(comm.rank % 2, axis="half") for _ in range(2)]
        return [half.calls.name for half in halves if half is not None]

    names = run_ranks(4, body)
    assert names[0] == names[2] == ["half 0-2 #1", "half 0-2 #2"]
    assert names[1] == names[3] == ["half 1-3 #1", "half 1-3 #2"]


def test_groups_of_other_members_have_other_names() -> None:
    recorder = Recorder(0, 16)
    names = [
        recorder.group("data", members, 0).name
        for members in (range(8), [0, 1, 2, 3, 4, 6, 5, 7], [0, 7], range(8))
    ]
    assert len({*names}) == 4
    assert names[0].startswith("data 0-…-7 (8 ranks, ")
    assert names[3] == names[0].replace("#1", "#2")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    recorder = Recorder(1, 2)
    recorder.folder, recorder.step = tmp_path, 12
    group = recorder.group("data", (1, 0), 0)
    group.collective("allreduce", "float32", 7, "sum", depth=1)
    group.message("send", "float32", 3, 1, 9, depth=1)[ENDED] = 2
    ready, over = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (ready.set(), over.wait()), name="other")
    other.start()
    ready.wait()
    assert record_file.write(recorder, "a test")
    over.set()
    flight = record_file.read_folder(tmp_path)[1]
    assert (flight.rank, flight.size, flight.step, flight.reason) == (1, 2, 12, "a test")
    assert flight.groups["data 1-0 #1"].ranks == (1, 0)
    first, second = flight.calls
    assert (first.state, first.function) == ("started", "test_what_is_written_is_read")
    assert (second.state, second.peer) == ("completed", 0)  # of the world
    assert any("wait" in line for line in flight.threads["other"])


def test_a_folder_that_is_full_or_gone_ends_nothing(tmp_path: Path) -> None:
    recorder = Recorder(0, 2)
    assert not record_file.write(recorder, "nowhere")
    recorder.folder = tmp_path / "gone"
    assert not record_file.write(recorder, "a test")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda _: "[]",
        lambda content: content.replace('"format": 1', '"format": 9'),
        lambda content: content.replace('"barrier"', "7"),
        lambda content: json.dumps({**json.loads(content), "groups": {}}),
    ],
)
def test_a_damaged_file_is_refused(damage: Any, tmp_path: Path) -> None:
    recorder = Recorder(0, 2)
    recorder.folder = tmp_path
    recorder.group("data", (0, 1), 0).collective("barrier", depth=1)
    record_file.write(recorder, "a test")
    file = record_file.file_of(tmp_path, 0)
    file.write_text(damage(file.read_text()))
    with pytest.raises(DataError, match=r"flight-0000\.json"):
        record_file.read(file)


def torch_blames(flights: dict[int, Flight], folder: Path) -> list[Blamed]:
    pytest.importorskip("torch.distributed.flight_recorder.fr_trace")
    torch_export.export(flights, folder)
    return blamed(folder)


def test_torch_finds_nothing_wrong_with_what_is_right(tmp_path: Path) -> None:
    def body(comm: Communicator) -> None:
        family.make("ring", comm)(torch.ones(50))
        comm.allgather(torch.ones(comm.rank), torch.ones(3), [0, 1, 2])
        half = comm.split(comm.rank // 2)
        assert half is not None
        half.broadcast(torch.ones(4))
        comm.barrier()

    assert torch_blames(taken_after(body, size=3), tmp_path) == []


def test_torch_names_the_rank_that_we_name(tmp_path: Path) -> None:
    """Ranks that have not begun, or begun another call; nothing is really waited for."""

    def begins(comm: Communicator, count: int, number: int) -> None:
        for _ in range(number):
            comm.calls.collective("allreduce", "float32", 8, "sum")[ENDED] = 1
        if count:
            comm.calls.collective("allreduce", "float32", count, "sum")

    absent = taken_after(lambda comm: begins(comm, 8 if comm.rank != 1 else 0, 3), size=3)
    assert diagnose(absent).ranks == (1,)
    assert torch_blames(absent, tmp_path / "absent") == [Blamed(4, {1})]
    differs = taken_after(lambda comm: begins(comm, 8 if comm.rank != 2 else 5, 3), size=3)
    assert diagnose(differs).ranks == (2,)
    (blame,) = torch_blames(differs, tmp_path / "differs")
    # It takes the first file that it finds for right.
    assert blame in (Blamed(4, {2}), Blamed(4, {0, 1}))


def test_the_export_begins_where_all_rings_do(tmp_path: Path) -> None:
    """Rank 1's ring has overwritten what rank 0's still holds."""
    flights = {}
    for rank, capacity in enumerate((100, 5)):
        recorder = Recorder(rank, 2, capacity)
        group = recorder.group("data", (0, 1), rank)
        for _ in range(9):
            group.message("send", "float32", 3, 1 - rank, 4, depth=1)[ENDED] = 1
            group.message("receive", "float32", 3, 1 - rank, 4, depth=1)[ENDED] = 1
            group.collective("barrier", depth=1)[ENDED] = 1
        flights[rank] = record_file.taken(recorder, "a test")
    assert torch_blames(flights, tmp_path) == []
