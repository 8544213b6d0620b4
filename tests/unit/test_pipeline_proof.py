"""Schedules that nobody would write: random ones that are right are proved and come back from their
files, and each way to spoil one is named with the action it is about.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.dry_run import Costs, dependencies, dry_run
from dist_ml.pipeline_parallel.peaks import memory
from dist_ml.pipeline_parallel.proof import check_complete, prove
from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.csv_file import from_file, parse_csv, write_csv
from dist_ml.pipeline_parallel.schedules.request import Request


@st.composite
def schedules(draw: st.DrawFn, least_ranks: int = 1) -> Schedule:
    """Any order in which everything can run, dealt to any ranks that hold the stages."""
    num_ranks = draw(st.integers(least_ranks, 4))
    own = draw(st.permutations(range(num_ranks)))
    more = draw(st.lists(st.integers(0, num_ranks - 1), max_size=3))
    ranks = [*own, *more]
    last, microbatches = len(ranks) - 1, draw(st.integers(1, 4))
    split = {(s, m): draw(st.booleans()) for s in range(last + 1) for m in range(microbatches)}
    ready = [Action(0, "F", m) for m in range(microbatches)]
    orders: list[list[Action]] = [[] for _ in range(num_ranks)]
    forward: set[tuple[int, int]] = set()
    while ready:
        action = ready.pop(draw(st.integers(0, len(ready) - 1)))
        orders[ranks[action.stage]].append(action)
        s, kind, m = action
        if kind == "F":
            forward.add((s, m))
            following = [(s + 1, "F")] if s < last else [(s, "I" if split[s, m] else "B")]
        elif kind in ("B", "I"):
            following = [(s - 1, "I" if split[s - 1, m] else "B")] if s else []
            following += [(s, "W")] if kind == "I" else []
        else:
            following = []
        ready += [Action(stage, of, m) for stage, of in following]  # type: ignore[arg-type]
    return one_pipe("random", orders, ranks, microbatches)


@given(schedules())
def test_what_can_run_is_proved_with_its_messages_and_peaks(schedule: Schedule) -> None:
    proof = prove(schedule)
    ranks, n = schedule.pipes[0], schedule.num_microbatches
    crossings = sum(a != b for a, b in itertools.pairwise(ranks))
    assert sum(proof.messages) == 2 * n * crossings
    assert proof.sends_in_flight <= sum(proof.messages)
    for rank, order in enumerate(schedule.actions):
        alive: set[tuple[int, int]] = set()
        peak = 0
        for stage, kind, m in order:
            alive |= {(stage, m)} if kind == "F" else set()
            alive -= {(stage, m)} if kind in ("B", "W") else set()
            peak = max(peak, len(alive))
        assert proof.memory.activations[rank] == peak
        assert not alive
    assert memory(schedule) == proof.memory


@given(schedules())
def test_a_csv_comes_back_as_it_was_with_what_may_stand_between(schedule: Schedule) -> None:
    text = write_csv(schedule)
    assert parse_csv(text, "x").actions == schedule.actions
    assert parse_csv(text, "x").pipes == schedule.pipes
    spaced = text.replace(",", ", ,1SEND_F0, ").replace("\n", " ,0UNSHARD\n") + ",\n\n"
    read = parse_csv(spaced, "x")
    assert (read.actions, read.pipes, read.pipe_of) == (
        schedule.actions,
        schedule.pipes,
        schedule.pipe_of,
    )


times = st.floats(0.1, 9.0)


@given(schedules(), st.data())
def test_everything_starts_as_soon_as_it_can_and_no_sooner(
    schedule: Schedule, data: st.DataObject
) -> None:
    stages = schedule.num_stages
    per_stage = st.tuples(*[times] * stages)
    costs = Costs(
        data.draw(per_stage), data.draw(per_stage), data.draw(per_stage), data.draw(times)
    )
    line = dry_run(schedule, costs)
    stop = {interval.action: interval.stop for rank in line.ranks for interval in rank}
    waits_for = dependencies(schedule)
    busy = 0.0
    for rank, intervals in enumerate(line.ranks):
        assert [interval.action for interval in intervals] == list(schedule.actions[rank])
        before = 0.0
        for action, start, end in intervals:
            arrivals = [
                stop[used] + (costs.message if schedule.rank_of(used) != rank else 0.0)
                for used in waits_for[action]
            ]
            assert start == max([before, *arrivals])
            assert end - start == pytest.approx(costs.of(action))
            before = end
            busy += costs.of(action)
    assert line.makespan == max(stop.values())
    assert line.span <= line.makespan
    total = line.makespan * schedule.num_ranks
    assert line.bubble == pytest.approx(1 - busy / total, abs=1e-12)


Spoil = Callable[[Schedule, int, int], tuple[list[list[Action]], str]]


def dropped(schedule: Schedule, rank: int, place: int) -> tuple[list[list[Action]], str]:
    orders = [list(order) for order in schedule.actions]
    gone = orders[rank].pop(place)
    return orders, f"{gone} is missing"


def doubled(schedule: Schedule, rank: int, place: int) -> tuple[list[list[Action]], str]:
    orders = [list(order) for order in schedule.actions]
    orders[rank].append(orders[rank][place])
    return orders, f"{orders[rank][place]} is there twice, the second time on rank {rank}"


def moved(schedule: Schedule, rank: int, place: int) -> tuple[list[list[Action]], str]:
    orders = [list(order) for order in schedule.actions]
    other = (rank + 1) % schedule.num_ranks
    gone = orders[rank].pop(place)
    orders[other].append(gone)
    return orders, f"{gone} stands on rank {other}, but .* are on rank {rank}"


def beyond(schedule: Schedule, rank: int, place: int) -> tuple[list[list[Action]], str]:
    orders = [list(order) for order in schedule.actions]
    wrong = orders[rank][place]._replace(microbatch=schedule.num_microbatches)
    orders[rank][place] = wrong
    return orders, f"{wrong} on rank {rank} is beyond its"


def repeated(schedule: Schedule, rank: int, place: int) -> tuple[list[list[Action]], str]:
    orders = [list(order) for order in schedule.actions]
    stage, _, m = orders[rank][place]
    whole = Action(stage, "B", m)
    extra = Action(stage, "W", m) if whole in orders[rank] else whole
    part = "W" if extra.kind == "W" else "I"
    orders[rank].append(extra)
    return orders, f"{stage}{part}{m} repeats a part of {whole}"


@pytest.mark.parametrize("spoil", [dropped, doubled, moved, beyond, repeated])
@given(schedule=schedules(least_ranks=2), data=st.data())
def test_each_fault_is_named_with_its_action(
    spoil: Spoil, schedule: Schedule, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    place = data.draw(st.integers(0, len(schedule.actions[rank]) - 1))
    orders, message = spoil(schedule, rank, place)
    spoiled = one_pipe("spoiled", orders, schedule.pipes[0], schedule.num_microbatches)
    with pytest.raises(ScheduleError, match=f"schedule spoiled: {message}"):
        check_complete(spoiled)


@given(schedule=schedules(), data=st.data())
def test_an_action_before_what_it_uses_is_a_dead_lock_that_names_the_rank(
    schedule: Schedule, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    order = list(schedule.actions[rank])
    stage, _, m = order[0]
    backward = next(a for a in order if a.stage == stage and a.microbatch == m and a.kind in "BI")
    order.remove(backward)
    order.insert(0, backward)
    orders = [list(order_) for order_ in schedule.actions]
    orders[rank] = order
    spoiled = one_pipe("spoiled", orders, schedule.pipes[0], schedule.num_microbatches)
    check_complete(spoiled)
    for look in (prove, lambda s: dry_run(s, Costs.uniform(s.num_stages)), memory):
        with pytest.raises(ScheduleError, match=f"dead-locks: .*rank {rank} at {backward}"):
            look(spoiled)  # type: ignore[operator]


@pytest.mark.parametrize("n", range(1, 9))
def test_the_sends_that_must_be_under_way_are_counted(n: int) -> None:
    """Rank 0 runs all n forward passes first, rank 1 sends each gradient back at once. With k sends
    under way rank 1 stops after k + 1 gradients, its next receive posted, and rank 0 comes k + 1
    sends further: to its forward pass 2k + 2, which must be the last one, n - 1.
    """
    ahead = [",".join(f"0{kind}{m}" for kind in "FB" for m in range(n))]
    ahead += [",".join(f"1{kind}{m}" for m in range(n) for kind in "FB")]
    proof = prove(parse_csv("\n".join(ahead), "ahead"))
    assert proof.sends_in_flight == max(0, math.ceil((n - 3) / 2))
    assert proof.memory.activations == (n, 1)


class TestFile:
    def request(self, file: Path, ranks: int = 2, microbatches: int = 2) -> Request:
        return Request(ranks, microbatches, file=str(file))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\xff\xfe0F0", "can't be read"),
            (b"0F0,0B0\n", "is for 1 ranks, but mesh.pipeline=2; use mesh.pipeline=1"),
            (b"0F0,0B0\n1F0,1B0\n", "is for 1 micro-batches, not 2; use 1"),
            (b"0F0,0B0\n1F0,1Q0\n", r"s\.csv, row 2 \(rank 1\): '1Q0' is no action"),
            (b"0F0,0B0\n1F1,1B1\n", "1F0 is missing on rank 1; each stage runs it once"),
            (b" , \n\n", "holds no action"),
        ],
        ids=["bytes", "ranks", "micro-batches", "cell", "stage", "empty"],
    )
    def test_what_a_file_may_be_is_told(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_bytes(content)
        with pytest.raises(ScheduleError, match=message):
            from_file(self.request(tmp_path / "s.csv"))
