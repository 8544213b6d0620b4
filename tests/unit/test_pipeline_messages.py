"""Messages between stages: tags, order, receives ahead, and forward passes that never dead-lock."""

from typing import Any

import pytest
import torch
from pipeline_world import SYNCHRONOUS
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.request import Request as Pending
from dist_ml.errors import ScheduleError
from dist_ml.models import MLP
from dist_ml.pipeline_parallel.dry_run import dependencies, topological_order
from dist_ml.pipeline_parallel.message_keys import used_by
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stage_graph import Shape, Stage, cut_into_stages
from dist_ml.pipeline_parallel.stages import cut_evenly
from dist_ml.train.pipeline_evaluator import forward_schedule

F32 = torch.float32


class Noting:
    """A communicator that notes what is posted and moves nothing."""

    def __init__(self, rank: int = 0, largest_tag: int = 2**15 - 1) -> None:
        self.rank, self.log = rank, []  # type: ignore[var-annotated]
        self.transport = type("Transport", (), {"largest_tag": largest_tag})

    def isend(self, tensor: torch.Tensor, destination: int, tag: int) -> Pending:
        self.log.append(("send", destination, tag, tuple(tensor.shape)))
        return Pending()

    def ireceive(self, tensor: torch.Tensor, source: int, tag: int) -> Pending:
        self.log.append(("receive", source, tag, tuple(tensor.shape)))
        return Pending()


def stages_of(schedule: Schedule) -> tuple[Stage, ...]:
    model = MLP((2,) * (schedule.num_stages + 1))
    return cut_into_stages(model, cut_evenly([1.0] * schedule.num_stages, schedule.num_stages))


def shapes(num_stages: int) -> dict[str, Shape]:
    return {f"layers.{i}": Shape((i + 1,), F32) for i in range(num_stages)}


def messages(schedule: Schedule, comm: Any) -> StageMessages:
    return StageMessages(comm, schedule, stages_of(schedule), shapes(schedule.num_stages), F32)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_every_message_has_a_tag_of_its_own_and_is_received_as_it_is_sent(
    name: str, num_ranks: int
) -> None:
    """A step in the order of a dry run: what a rank sends, another one has posted or will post."""
    schedule = make(name, Request(num_ranks, 8))
    ranks = [Noting(rank) for rank in range(num_ranks)]
    ways = [messages(schedule, comm) for comm in ranks]
    sizes = [m % 3 for m in range(8)]  # some have no samples
    for way in ways:
        way.begin(sizes)
    stages = stages_of(schedule)
    for rank, action in topological_order(schedule, dependencies(schedule)):
        stage, m = stages[action.stage], action.microbatch
        if not sizes[m]:
            continue
        for key in used_by(action, stages):
            ways[rank].take(key.edge, m, backward=key.backward)
        given = {"F": stage.gives, "B": stage.takes, "I": stage.takes, "W": ()}[action.kind]
        for edge in given:
            size = shapes(schedule.num_stages)[edge.value].sizes
            ways[rank].give(edge, m, torch.zeros(sizes[m], *size), backward=action.kind != "F")
    sent, received = set(), set()
    for rank, comm in enumerate(ranks):
        ways[rank].end()
        for way, other, tag, shape in comm.log:
            ends = (rank, other) if way == "send" else (other, rank)
            group = sent if way == "send" else received
            assert (*ends, tag, shape) not in group
            group.add((*ends, tag, shape))
    assert sent == received
    assert len({(source, to, tag) for source, to, tag, _ in sent}) == len(sent)
    crossings = sum(
        2 * (pipe[s] != pipe[s + 1])
        for m, pipe in enumerate(schedule.pipes[p] for p in schedule.pipe_of)
        if sizes[m]
        for s in range(schedule.num_stages - 1)
    )
    assert len(sent) == crossings > 0


def test_receives_are_posted_ahead_in_the_order_of_their_use() -> None:
    schedule = make("gpipe", Request(2, 6))
    comm = Noting(rank=1)
    way = messages(schedule, comm)
    (edge,) = stages_of(schedule)[1].takes
    way.begin([1, 1, 0, 1, 1, 1])
    assert [tag for _, _, tag, _ in comm.log] == [0, 1, 3, 4]
    way.take(edge, 0)
    assert [tag for _, _, tag, _ in comm.log] == [0, 1, 3, 4, 5]
    for m in (1, 3, 4, 5):
        way.take(edge, m)
    way.end()
    assert len(comm.log) == 5
    way.begin([0] * 6)
    way.end()
    assert len(comm.log) == 5


def test_tags_beyond_those_that_mpi_has_are_refused() -> None:
    schedule = make("gpipe", Request(3, 5))  # two edges, two directions: tags 0 to 19
    messages(schedule, Noting(largest_tag=19))
    with pytest.raises(ScheduleError, match=r"2 edges .* 5 micro-batches .* up to 19, .* has 18"):
        messages(schedule, Noting(largest_tag=18))


def test_what_is_left_over_is_found_at_the_end() -> None:
    schedule = make("gpipe", Request(2, 2))
    way = messages(schedule, Noting(rank=1))
    way.begin([1, 1])
    with pytest.raises(AssertionError, match="never taken"):
        way.end()


def test_what_stays_on_a_rank_is_copied_and_integers_keep_their_type() -> None:
    schedule = make("zb_v", Request(1, 1))
    stages = stages_of(schedule)
    types = {"layers.0": Shape((2,), torch.int64), "layers.1": Shape((1,), torch.float64)}
    way = StageMessages(Communicator(Loopback()), schedule, stages, types, F32)
    way.begin([3])
    (edge,) = stages[0].gives
    given = torch.arange(6).reshape(3, 2)
    way.give(edge, 0, given)
    given.zero_()
    assert way.take(edge, 0).tolist() == [[0, 1], [2, 3], [4, 5]]
    gradient = torch.full((3, 1), 0.1, dtype=torch.float64)
    back = edge._replace(value="layers.1")
    way.give(back, 0, gradient, backward=True)
    assert way.take(back, 0, backward=True).dtype == F32
    way.end()


PIPES = [
    *((name, Request(ranks, 8)) for name in SYNCHRONOUS for ranks in (2, 4)),
    ("chimera", Request(4, 4, pipes=4)),
    ("interleaved", Request(3, 3, chunks=4)),
    ("one_f_one_b", Request(7, 7)),
]


@pytest.mark.parametrize(("name", "request_"), PIPES, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("num_microbatches", [1, 2, 9])
def test_forward_passes_alone_run_through_every_pipe(
    name: str, request_: Request, num_microbatches: int
) -> None:
    schedule = make(name, request_)
    forward = forward_schedule(schedule, num_microbatches)
    order = [action for _, action in topological_order(forward, dependencies(forward))]
    assert sorted(order) == sorted(
        Action(stage, "F", m)
        for stage in range(schedule.num_stages)
        for m in range(num_microbatches)
    )
    for rank, actions in enumerate(forward.actions):
        assert all(schedule.pipes[0][action.stage] == rank for action in actions)


@pytest.mark.usefixtures("sends")
@pytest.mark.parametrize("name", ["interleaved", "zb_v"])
def test_they_come_to_their_end_whatever_is_buffered(name: str) -> None:
    """Many more pieces than receives are posted ahead: each rank takes what it needs, in order."""
    forward = forward_schedule(make(name, Request(3, 6)), 40)
    stages = stages_of(forward)

    def body(comm: Communicator) -> list[float]:
        way = StageMessages(comm, forward, stages, shapes(forward.num_stages), F32)
        way.begin([1] * 40)
        found = []
        for stage, _, m in forward.actions[comm.rank]:
            value = float(m)
            for edge in stages[stage].takes:
                value = float(way.take(edge, m)[0, 0])
            for edge in stages[stage].gives:
                sizes = shapes(forward.num_stages)[edge.value].sizes
                way.give(edge, m, torch.full((1, *sizes), value + 1))
            if stages[stage].is_last:
                found.append(value)
        way.end()
        return found

    last = [found for found in run_ranks(3, body) if found]
    assert last == [[m + forward.num_stages - 1.0 for m in range(40)]]
