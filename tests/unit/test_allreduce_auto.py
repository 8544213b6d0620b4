"""Which allreduce `auto` takes, what it measures, and what it keeps of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.allreduce import auto, family
from dist_ml.comm.allreduce.auto import Auto, candidates, choose
from dist_ml.comm.allreduce.generator_request import GeneratorRequest, Steps
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.request import Request
from dist_ml.comm.traffic import Traffic


@pytest.mark.parametrize(
    ("ranks_per_node", "wire", "expected"),
    [
        ([3], "fp32", ["shared_memory", "ring", "rabenseifner", "native"]),
        ([3], "bf16", ["shared_memory"]),
        ([2, 2], "fp32", ["hierarchical", "ring", "rabenseifner", "native"]),
        ([2, 1], "fp16", ["hierarchical", "ring", "rabenseifner"]),
        ([1, 1, 1], "fp32", ["ring", "rabenseifner", "native"]),
        ([1, 1], "bf16", ["ring", "rabenseifner"]),
    ],
)
def test_only_what_can_work_on_these_nodes_is_a_candidate(
    ranks_per_node: list[int], wire: Any, expected: list[str]
) -> None:
    assert candidates(ranks_per_node, wire) == expected


def test_the_fastest_at_a_size_is_taken_between_sizes_along_the_logarithms() -> None:
    table = {
        "100": {"few messages": 1.0, "few words": 10.0},
        "10000": {"few messages": 100.0, "few words": 10.0},
    }
    found = {size: choose(table, size) for size in (1, 100, 900, 1100, 10_000, 10**9)}
    assert [found[size] for size in (1, 100, 900)] == ["few messages"] * 3
    assert [found[size] for size in (1100, 10_000, 10**9)] == ["few words"] * 3


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and sizes that are measured at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(auto.NETWORK_VARIABLE, raising=False)
    monkeypatch.setattr(auto, "SIZES_BYTES", (64, 4096))
    return tmp_path / "dist_ml"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Candidates that were measured instead of read; messages are made to seem slow for short
    vectors.
    """
    names: list[str] = []

    def seconds(_: Communicator, member: Any, num_bytes: int) -> float:
        names.append(member.name)
        member(torch.ones(num_bytes // 4))
        return {"shared_memory": 1e-6 * num_bytes, "ring": 1e-3}.get(member.name, 1.0)

    monkeypatch.setattr(auto, "_seconds", seconds)
    return names


def make(comm: Communicator) -> Auto:
    found = family.make("auto", comm)
    assert isinstance(found, Auto)
    return found


def test_each_call_goes_to_the_fastest_for_its_size(cache: Path, measured: list[str]) -> None:
    def body(comm: Communicator) -> None:
        reduce = make(comm)
        for n, member in ((20, "shared_memory"), (2000, "ring")):
            assert reduce.member(4 * n).name == member
            assert reduce.words(n) == reduce.member(4 * n).words(n)
            before = comm.traffic.snapshot()
            x = reduce.allocate(n, torch.float32).fill_(comm.rank + 1)
            reduce(x)
            reduce.start(x).wait()
            assert torch.equal(x, torch.full((n,), 6.0 * 3))
            assert [label for _, label in comm.traffic.since(before)] == [member]
        reduce.free()

    run_ranks(3, body)


def test_members_under_way_beside_each_other_end_in_any_order(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring that waits for messages and a sum in shared memory that waits for flags would wait for
    each other where ranks wait for them in different orders.
    """
    names = ("shared_memory", "ring", "rabenseifner", "native")
    small = dict(zip(names, (2.0, 1.0, 3.0, 3.0), strict=True))
    large = dict(zip(names, (1.0, 2.0, 3.0, 3.0), strict=True))
    monkeypatch.setattr(auto, "calibration", lambda *_: {"4096": small, "65536": large})

    def body(comm: Communicator) -> list[float]:
        reduce = family.make("auto", comm)
        buffer = reduce.allocate(40_000, torch.float64)
        for attempt in range(4):
            buffer.fill_(1.0 + comm.rank)
            cuts = [buffer[:100], buffer[100:20_000], buffer[20_000:20_200], buffer[20_200:]]
            requests = [reduce.start(cut) for cut in cuts]
            for request in requests if (comm.rank + attempt) % 2 else reversed(requests):
                request.wait()
        sums: list[float] = buffer.unique().tolist()
        return sums

    assert run_ranks(3, body) == [[6.0]] * 3


def test_what_was_measured_is_kept_for_these_nodes_and_this_network(
    cache: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(comm: Communicator) -> auto.Table:
        reduce = make(comm)
        reduce.free()
        return reduce.table

    tables = run_ranks(2, body)
    assert tables[0] == tables[1]
    assert len(measured) == 2 * 2 * 4  # ranks, sizes, candidates
    measured.clear()
    assert run_ranks(2, body) == tables
    assert measured == []
    monkeypatch.setenv(auto.NETWORK_VARIABLE, "network 100mbit")
    run_ranks(2, body)
    assert measured
    measured.clear()
    run_ranks(3, body)
    assert measured
    assert len(list(cache.glob("allreduce-*.json"))) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept["seconds"]["64"].pop("ring"),
        lambda kept: kept["seconds"].pop("4096"),
        lambda kept: kept["seconds"]["64"].update(ring=0.0),
        lambda kept: kept["seconds"]["64"].update(ring="fast"),
        lambda kept: kept["seconds"].update({"64": 5}),
        lambda kept: kept["seconds"].update({"4096": ["ring"]}),
        lambda kept: kept.update(seconds=[1]),
        lambda kept: kept.clear(),
    ],
    ids=["a member", "a size", "zero", "text", "no table", "list", "no tables", "empty"],
)
def test_a_kept_table_that_is_not_whole_is_measured_again(
    cache: Path, measured: list[str], damage: Callable[[dict[str, Any]], object]
) -> None:
    body: Callable[[Communicator], auto.Table] = lambda comm: make(comm).table  # noqa: E731
    whole = run_ranks(2, body)
    (file,) = cache.glob("allreduce-*.json")
    kept = json.loads(file.read_text())
    damage(kept)
    file.write_text(json.dumps(kept))
    measured.clear()
    assert run_ranks(2, body) == whole
    assert measured


def test_times_are_the_slowest_ranks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        auto, "_seconds", lambda comm, member, _size: 1.0 + comm.rank * len(member.name)
    )

    def body(comm: Communicator) -> auto.Table:
        return auto.measure(comm, {"ring": family.make("ring", comm)})

    assert run_ranks(3, body) == [{"64": {"ring": 9.0}, "4096": {"ring": 9.0}}] * 3


def test_one_rank_has_all_candidates_of_a_node(cache: Path) -> None:
    reduce = make(Communicator(Loopback()))
    x = torch.tensor([1.0, 2.0])
    reduce(x, "mean")
    assert x.tolist() == [1.0, 2.0]
    assert set(next(iter(reduce.table.values()))) == set(candidates([1], "fp32"))
    assert all(seconds > 0 for times in reduce.table.values() for seconds in times.values())


class Pending:
    """Arrives after so many looks; notes when it was waited for."""

    def __init__(self, looks: int, log: list[str]) -> None:
        self.looks, self.log = looks, log

    def Test(self) -> bool:  # noqa: N802
        self.looks -= 1
        return self.looks < 0

    def Wait(self) -> None:  # noqa: N802
        self.log.append("waited")


class TestGeneratorRequest:
    def steps(self, log: list[str], comm: Communicator, looks: tuple[int, ...]) -> Steps:
        for number, count in enumerate(looks):
            log.append(f"step {number} under {comm.traffic.label}")
            yield Request([Pending(count, log)])
        log.append("end")

    def made(
        self, looks: tuple[int, ...], timing: bool = False
    ) -> tuple[GeneratorRequest, list[str], Communicator]:
        comm = Communicator(Loopback(), "data", Traffic(timing))
        log: list[str] = []
        return GeneratorRequest(self.steps(log, comm, looks), comm, "ring"), log, comm

    def test_a_look_goes_on_as_far_as_messages_have_come(self) -> None:
        request, log, comm = self.made((0, 2, 0))
        assert not request.Test()
        assert log == ["step 0 under ring", "step 1 under ring"]
        assert comm.traffic.label is None
        assert not request.Test()
        assert request.Test()
        assert log[2:] == ["step 2 under ring", "end"]
        assert request.Test(), "and stays at its end"

    @pytest.mark.parametrize("timing", [False, True])
    def test_a_wait_waits_for_each_in_turn(self, timing: bool) -> None:
        request, log, comm = self.made((5, 5), timing)
        request.Wait()
        assert log == ["step 0 under ring", "waited", "step 1 under ring", "waited", "end"]
        timed = {key: tally.seconds > 0 for key, tally in comm.traffic.snapshot().items()}
        assert timed == ({("data", "ring"): True} if timing else {})
