"""Schedules against the figures that are published of them, and the proof against broken ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.errors import ConfigError, ScheduleError
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.peaks import memory
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe, one_stage
from dist_ml.pipeline_parallel.schedules.csv_file import parse_csv, write_csv
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES, make
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stages import cut_by_hand, cut_evenly

SYNCHRONOUS = [name for name in SCHEDULES if name not in ("pipedream_2bw", "file")]
SIZES = [(2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32)]


def times(schedule: Schedule, forward: float = 1.0, backward: float = 2.0) -> Costs:
    """Of a whole rank's work: a rank with v stages has 1/v of it in each."""
    share = schedule.num_ranks / schedule.num_stages
    return Costs.uniform(schedule.num_stages, share * forward, share * backward)


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_every_schedule_is_complete_and_needs_at_most_one_send_in_flight(
    name: str, ranks: int, microbatches: int
) -> None:
    schedule = make(name, Request(ranks, microbatches))
    proof = prove(schedule)
    assert proof.sends_in_flight <= 1
    stages = schedule.num_stages
    assert sum(proof.messages) == sum(
        2 * (pipe[s] != pipe[s + 1])
        for pipe in (schedule.pipes[p] for p in schedule.pipe_of)
        for s in range(stages - 1)
    )
    busy = {r: sum(i.stop - i.start for i in line) for r, line in enumerate(run(schedule))}
    assert list(busy.values()) == pytest.approx([3 * microbatches] * ranks)


def run(schedule: Schedule) -> tuple[tuple, ...]:  # type: ignore[type-arg]
    return dry_run(schedule, times(schedule)).ranks


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 2), (4, 4), (4, 16), (8, 32), (3, 7)])
def test_bubbles_and_activations_are_the_published_ones(ranks: int, microbatches: int) -> None:
    d, n = ranks, microbatches
    gpipe, one_f = make("gpipe", Request(d, n)), make("one_f_one_b", Request(d, n))
    for schedule in (gpipe, one_f):
        for costs in (times(schedule), times(schedule, 1, 1)):
            assert dry_run(schedule, costs).bubble == pytest.approx((d - 1) / (n + d - 1))
    assert memory(gpipe).activations == (n,) * d
    assert memory(one_f).activations == tuple(min(d - s, n) for s in range(d))
    h1 = make("zb_h1", Request(d, n))
    assert memory(h1).activations == (min(d, n),) * d
    idle = dry_run(h1, times(h1, 1, 2)).makespan - 3 * n
    assert idle == pytest.approx(d - 1)  # (D-1)(F + I - W)
    if n % d == 0:
        interleaved = make("interleaved", Request(d, n, chunks=2))
        assert dry_run(interleaved, times(interleaved)).bubble == pytest.approx(
            (d - 1) / (2 * n + d - 1)
        )
    if n >= 2 * d - 1:
        h2 = make("zb_h2", Request(d, n))
        assert memory(h2).activations == (2 * d - 1,) * d
        assert dry_run(h2, times(h2)).span == pytest.approx(3 * n)
        v = make("zb_v", Request(d, n))
        assert dry_run(v, times(v)).span == pytest.approx(3 * n)
        assert max(memory(v).activations) == 2 * d
    if n >= 2 * d:
        assert max(memory(make("dualpipe_v", Request(d, n))).activations) == 2 * d + 1


@pytest.mark.parametrize("ranks", [2, 4, 6, 8, 16])
def test_chimera_of_one_block_idles_d_over_f_minus_two_slots(ranks: int) -> None:
    for f in (f for f in range(1, ranks // 2 + 1) if ranks // 2 % f == 0):
        schedule = make("chimera", Request(ranks, ranks, pipes=2 * f))
        idle = ranks // f - 2
        assert dry_run(schedule, times(schedule, 1, 1)).bubble == pytest.approx(
            idle / (2 * ranks + idle)
        )
        assert len(schedule.holders(0)) == 2 * f
        if f == 1:
            assert min(memory(schedule).activations) == ranks // 2 + 1
            assert max(memory(schedule).activations) == ranks


# D, N -> the makespans (F = 1, B = 2) that an event simulation of the published orders gives
MAKESPANS = [
    (4, 4, {"one_f_one_b": 21, "chimera": 16, "interleaved": 16.5}),
    (4, 8, {"one_f_one_b": 33, "chimera": 29, "interleaved": 28.5}),
    (8, 8, {"one_f_one_b": 45, "chimera": 36}),
    (8, 16, {"one_f_one_b": 69, "chimera": 65, "interleaved": 58.5, "zb_h1": 55, "zb_v": 51.5}),
    (8, 32, {"one_f_one_b": 117, "chimera": 110}),
]


@pytest.mark.parametrize(("ranks", "microbatches", "expected"), MAKESPANS)
def test_makespans_are_met_or_beaten(
    ranks: int, microbatches: int, expected: dict[str, float]
) -> None:
    for name, makespan in expected.items():
        schedule = make(name, Request(ranks, microbatches))
        assert dry_run(schedule, times(schedule)).makespan <= makespan + 1e-9, name


def test_direct_concatenation_loses_to_1f1b_and_forward_doubling_does_not() -> None:
    direct, doubled = (
        make("chimera", Request(8, 32, concatenation=way)) for way in ("direct", "doubling")
    )
    plain = make("one_f_one_b", Request(8, 32))
    found = [round(dry_run(s, times(s)).bubble, 3) for s in (direct, plain, doubled)]
    assert found == [0.238, 0.179, 0.086]
    assert max(memory(doubled).activations) == 2 * max(memory(direct).activations)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_2bw_has_no_bubble_but_filling_and_draining(ranks: int) -> None:
    schedule = make("pipedream_2bw", Request(ranks, 2 * ranks))
    several = unrolled(schedule, 5)
    prove(several)
    busy = 5 * 2 * ranks * 3
    assert dry_run(several, times(several)).makespan == pytest.approx(busy + 3 * (ranks - 1))
    assert memory(several).activations == tuple(ranks - s for s in range(ranks))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_csv_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    schedule = make(name, Request(4, 8))
    file = tmp_path / "schedule.csv"
    file.write_text(write_csv(schedule))
    read = make("file", Request(4, 8, file=str(file)))
    assert read.actions == schedule.actions
    assert [read.pipes[p] for p in read.pipe_of] == [schedule.pipes[p] for p in schedule.pipe_of]


def test_what_torch_adds_to_a_csv_is_dropped_and_overlapped_actions_are_taken_apart() -> None:
    text = "0F0,0SEND_F0,,0RECV_B0,0UNSHARD,0B0,0REDUCE_GRAD\n0RECV_F0,1F0,1B0,1SEND_B0\n"
    schedule = parse_csv(text.replace("0RECV_F0,1F0", "1RECV_F0,1F0"), "x")
    assert str(schedule) == "0F0 0B0\n1F0 1B0"
    overlapped = parse_csv("0F0,(0F1;0B0)OVERLAP_F_B,0B1\n", "x")
    assert str(overlapped) == "0F0 0F1 0B0 0B1"


def broken(text: str) -> Schedule:
    return parse_csv(text, "broken.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0F0,0B0\n", "0F0 is there twice"),
        ("0F0,0I0,0W0,0F1,0I1\n", "0W1 is missing"),
        ("0F0,0F1,0B0\n", "0B1 is missing"),
        ("0F0,0B0,0W0\n", "0W0 repeats a part of 0B0"),
        ("0F0,0B0\n1F0,1B0\n0F1,0B1\n", "1F1 is missing"),
        ("0F0,0B0\n1F0,0B0,1B0\n", "0B0 stands on rank 1"),
        ("0B0,0F0\n", "dead-locks: rank 0 at 0B0"),
        ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "dead-locks: rank 0 at 0B0, rank 1 at 1F1"),
        ("0F0,0X0\n", "row 1 \\(rank 0\\): '0X0' is no action"),
        ("0F0,0F0extra\n", "'0F0extra' is no action"),
        ("", "holds no action"),
        ("1F0,1B0\n", "0F0 is missing"),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_action(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        prove(broken(text))


def test_actions_beyond_the_header_are_refused() -> None:
    schedule = one_pipe("x", [[Action(0, "F", 0), Action(0, "B", 0), Action(0, "F", 1)]], [0], 1)
    with pytest.raises(ScheduleError, match="0F1 on rank 0 is beyond its 1 stages and 1"):
        prove(schedule)


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("interleaved", Request(4, 6), "use 4 or 8"),
        ("interleaved", Request(4, 3), "not 3; use 4$"),
        ("chimera", Request(3, 6), "use 2 or 4"),
        ("chimera", Request(4, 5), "use 4 or 6"),
        ("chimera", Request(8, 8, pipes=6), "use one of 2, 4, 8"),
        ("chimera", Request(4, 4, concatenation="doubling"), "use concatenation=direct"),
        ("chimera", Request(4, 4, concatenation="tripling"), "auto, direct, doubling"),
        ("zb_h2", Request(4, 6), "at least 7 micro-batches"),
        ("zb_v", Request(4, 6), "at least 7"),
        ("dualpipe_v", Request(4, 7), "at least 8"),
        ("pipedream_2bw", Request(4, 3), "at least 4"),
        ("file", Request(4, 3), "pipeline.file"),
        ("file", Request(4, 3, file="/nowhere/x.csv"), "can't be read"),
        ("gpipe", Request(4, 0), "at least 1 rank and 1 micro-batch"),
        ("giraffe", Request(4, 4), "none of gpipe"),
    ],
)
def test_numbers_that_a_schedule_cannot_take_are_refused_with_ones_it_can(
    name: str, request_: Request, message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        make(name, request_)


def test_a_file_for_another_mesh_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text(write_csv(make("gpipe", Request(2, 4))))
    with pytest.raises(ScheduleError, match=r"mesh\.pipeline=2"):
        make("file", Request(4, 4, file=str(file)))
    with pytest.raises(ScheduleError, match="use 4"):
        make("file", Request(2, 8, file=str(file)))


def test_messages_take_time_and_unequal_stages_set_the_pace() -> None:
    schedule = make("one_f_one_b", Request(2, 1))
    costs = Costs((1.0, 3.0), (1.0, 1.0), (1.0, 1.0), message=0.5)
    assert dry_run(schedule, costs).makespan == pytest.approx(1 + 0.5 + 3 + 2 + 0.5 + 2)


def test_one_stage_is_gradient_accumulation() -> None:
    assert str(one_stage(3)) == "0F0 0B0 0F1 0B1 0F2 0B2"
    assert prove(one_stage(3)).messages == (0,)
    assert one_stage(1).stages_of(0) == (0,)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 9))
def test_stages_are_cut_as_evenly_as_can_be(costs: list[int], num_stages: int) -> None:
    if num_stages > len(costs):
        with pytest.raises(ConfigError, match=f"at most {len(costs)} stages"):
            cut_evenly(costs, num_stages)
        return
    cuts = cut_evenly(costs, num_stages)
    assert [cut.start for cut in cuts[1:]] == [cut.stop for cut in cuts[:-1]]
    assert (cuts[0].start, cuts[-1].stop) == (0, len(costs))
    assert all(cut.size for cut in cuts)
    assert max(sum(costs[cut.slice]) for cut in cuts) == _best(costs, num_stages)


def _best(costs: list[int], num_stages: int) -> int:
    if num_stages == 1:
        return sum(costs)
    return min(
        max(sum(costs[:i]), _best(costs[i:], num_stages - 1))
        for i in range(1, len(costs) - num_stages + 2)
    )


def test_stages_by_hand() -> None:
    names = ["a", "b", "c", "d"]
    assert cut_by_hand(names, ["a", "c"]) == [Range(0, 2), Range(2, 4)]
    for first, message in (
        (["a", "x"], "no block is named x"),
        (["b", "c"], "the first with a"),
        (["a", "c", "b"], "in the model's order"),
        ([], "not with none"),
    ):
        with pytest.raises(ConfigError, match=message):
            cut_by_hand(names, first)


class Reading:
    """A request that notes which of its fields are read."""

    def __init__(self, request: Request) -> None:
        self._request, self.read = request, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self._request, name)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "file"])
def test_a_schedule_is_asynchronous_where_it_says_so(name: str) -> None:
    made = make(name, Request(4, 8))
    assert made.is_asynchronous == SCHEDULES[name].is_asynchronous


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_schedule_reads_the_keys_that_it_says_it_reads(name: str, tmp_path: Path) -> None:
    """A key that is listed and never looked at would be accepted and ignored."""
    (tmp_path / "x.csv").write_text(write_csv(make("gpipe", Request(4, 8))))
    reading = Reading(Request(4, 8, file=str(tmp_path / "x.csv")))
    SCHEDULES[name].make(reading)  # type: ignore[arg-type]
    common = {"ranks", "microbatches", "forward", "backward"}
    assert reading.read - common == set(SCHEDULES[name].reads)
