"""The measuring parts of `dist-ml bench gemm` and `gemm_words` at tiny size, on ranks whose
collectives are made of messages, and what their `run` makes of it.
"""

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench import gemm, gemm_checks, gemm_part, gemm_products, gemm_words
from dist_ml.bench.bench import Part
from dist_ml.bench.form import Check
from dist_ml.gemm.family import GEMMS
from dist_ml.gemm.multiply import Gemm
from dist_ml.kernels.tuner import Tuner
from dist_ml.launch.emulated_network.hosts import LinkCounters
from tests.message_world import run_message_ranks
from tests.unit.bench_worlds import GivenNetwork, GivenWorlds, alone, bench_config, failed

PRODUCTS = {"cases": 1, "volume_size": 12}


@pytest.fixture(autouse=True)
def nothing_is_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Tuner, "tune", lambda *_: None)


def on_ranks(size: int, part: Part, arguments: Mapping[str, Any]) -> Any:
    return run_message_ranks(size, lambda comm, _: part(comm, arguments))[0]


# --- gemm


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_algorithm_is_timed_beside_the_local_kernel(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm_part.peak, "flops_per_second", lambda: 1e9)
    names = list(GEMMS)
    part = {"size": 24, "algorithms": names, "rounds": 2, "heat": False}
    found = on_ranks(size, gemm_part.measure, part)
    assert list(found["seconds"]) == [gemm_part.LOCAL, *names]
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    assert found["peak"] == size * torch.get_num_threads() * 1e9


def test_a_peak_that_one_rank_cannot_measure_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1e9, None])
    monkeypatch.setattr(gemm_part.peak, "flops_per_second", lambda: next(rates))
    part = {"size": 4, "algorithms": ["gather"], "rounds": 1, "heat": False}
    assert on_ranks(2, gemm_part.measure, part)["peak"] is None


def test_of_heats_splits_the_fastest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Heat, whose product takes as long as its splits say."""
    clock = [0.0]
    heat = ModuleType("heat")
    random = ModuleType("heat.random")
    multiplied: list[tuple[Any, Any]] = []

    def matmul(a: int | None, b: int | None) -> None:
        multiplied.append((a, b))
        clock[0] += 1.0 if (a, b) == (0, None) else 3.0

    random.rand = lambda *_, split, **_kinds: split  # type: ignore[attr-defined]
    heat.random, heat.matmul, heat.float32 = random, matmul, "fp32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "heat", heat)
    monkeypatch.setattr(gemm_part.importlib.util, "find_spec", lambda name: name == "heat")
    monkeypatch.setattr("dist_ml.measure.compare.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(gemm_part.peak, "flops_per_second", lambda: None)
    part = {"size": 4, "algorithms": ["gather"], "rounds": 3, "heat": True}
    found = alone(gemm_part.measure, part)
    assert found["seconds"]["heat, splits 0 and None"] == [1.0] * 3
    assert set(multiplied) == set(gemm_part.SPLITS)
    assert (None, None) not in gemm_part.SPLITS


@pytest.mark.parametrize("size", [2, 4])
def test_products_and_communication_are_timed_together_and_apart(size: int) -> None:
    part = {"size": 24, "panel": 8, "rounds": 2}
    found = on_ranks(size, gemm_part.measure_overlap, part)
    assert list(found["seconds"]) == ["together", "communication", "computing"]
    for figures in found.values():
        assert all(len(values) == 2 and min(values) >= 0 for values in figures.values())


class CountedNetwork(GivenNetwork):
    """Each host has sent a thousand bytes more at each look."""

    looks = 0

    def traffic(self) -> list[LinkCounters]:
        self.looks += 1
        return [LinkCounters(1000 * self.looks, 0) for _ in range(self.num_hosts)]


class NetworkWorlds(GivenWorlds):
    @contextmanager
    def network(self, hosts: int, rate: str) -> Iterator[GivenNetwork]:
        yield CountedNetwork(hosts, rate, self)


def overlapped(together: float) -> dict[str, Any]:
    seconds = {"together": [together] * 3, "communication": [1.0] * 3, "computing": [2.0] * 3}
    return {"seconds": seconds, "processor": {name: [1.0] * 3 for name in seconds}}


@pytest.mark.parametrize(
    ("together", "hidden", "green"),
    [
        pytest.param(2.1, 0.9, True, id="nearly all"),
        pytest.param(2.5, 0.5, False, id="half"),
        pytest.param(3.0, 0.0, False, id="nothing"),
        pytest.param(float("nan"), float("nan"), False, id="not measured"),
    ],
)
def test_what_overlap_hides_of_the_smaller(
    together: float, hidden: float, green: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "missing", lambda: None)
    times = {"local kernel": [1.0], "auto": [1.0]}
    parts = {"gemm": {"seconds": times, "peak": None}, "gemm overlap": overlapped(together)}
    result = gemm.run(bench_config("gemm", "heat=false"), NetworkWorlds(parts))
    check: Check = result.checks[-1]
    assert check.name == "overlap hides of the smaller"
    assert check.value == pytest.approx(hidden, nan_ok=True)
    assert check.passed is green
    values = {record.get("measured"): record.get("value") for record in result.records}
    assert values["bytes that left each host"] == "[1000, 1000, 1000, 1000]"


@pytest.mark.parametrize(
    ("seconds", "names"),
    [
        pytest.param({"auto": 1.0, "heat": 3.0}, [], id="good"),
        pytest.param({"auto": 1.2, "heat": 3.0}, ["auto over the local kernel"], id="slow"),
        pytest.param({"auto": 1.0, "heat": 2.0}, ["auto over Heat"], id="heat is as good"),
        pytest.param({"auto": float("nan"), "heat": 3.0},
                     ["auto over the local kernel", "auto over Heat"], id="not measured"),
    ],
)  # fmt: skip
def test_auto_against_the_local_kernel_and_heat(
    seconds: dict[str, float], names: list[str]
) -> None:
    times = {"local kernel": [1.0], "auto": [seconds["auto"]]}
    times["heat, splits 0 and 1"] = [seconds["heat"]]
    found = {"gemm": {"seconds": times, "peak": None}}
    result = gemm.run(bench_config("gemm", "emulated_network=false"), GivenWorlds(found))
    assert failed(result.checks) == names


def test_what_cannot_be_measured_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "missing", lambda: "no tc")
    found = {"gemm": {"seconds": {"local kernel": [1.0], "auto": [1.0]}, "peak": None}}
    result = gemm.run(bench_config("gemm"), GivenWorlds(found))
    left_out = {record["left out"]: record["because"] for record in result.records[2:]}
    assert left_out["overlap in the emulated network"] == "no tc"
    assert "Heat" in left_out


# --- gemm_words


@functools.cache
def products(size: int) -> Any:
    """With redistributions between all layouts on 3 ranks, and between a few elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        if size != 3:
            patch.setattr(
                gemm_checks, "_layouts", lambda size, of=gemm_checks._layouts: of(size)[::3]
            )
        return on_ranks(size, gemm_products.measure_products, PRODUCTS)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_random_products_are_right_and_move_what_was_planned(size: int) -> None:
    found = products(size)
    assert failed(gemm_words.product_checks([found])) == []
    assert found["products"] == len(GEMMS)
    assert found["relayouts"] == (81 if size == 3 else 9)
    assert sorted(found["volumes"]) == (["cannon", "cosma", "summa"] if size == 4 else [])


@pytest.fixture
def nothing_is_redistributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes most of the time, and is not what a product does."""
    monkeypatch.setattr(gemm_products, "redistributed", lambda _: (0, 0))


@pytest.mark.usefixtures("nothing_is_redistributed")
def test_a_wrong_element_is_an_error_over_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = Gemm.__call__

    def wrong(self: Gemm, a: Any, b: Any, c: Any, *factors: Any) -> Any:
        found = multiply(self, a, b, c, *factors)
        if c.storage.numel():
            c.storage.view(-1)[0] += 100.0
        return found

    monkeypatch.setattr(Gemm, "__call__", wrong)
    found = on_ranks(2, gemm_products.measure_products, PRODUCTS)
    assert "worst error over its bound" in failed(gemm_words.product_checks([found]))


@pytest.mark.usefixtures("nothing_is_redistributed")
@pytest.mark.parametrize(
    ("below", "names"),
    [
        pytest.param(False, ["seen words differ", "ledger differs"], id="in the ledger"),
        pytest.param(True, ["seen words differ"], id="below the ledger"),
    ],
)
def test_words_that_no_plan_has_are_found(
    below: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each product is followed by one more message."""
    multiply = Gemm.__call__

    def chatty(self: Gemm, a: Any, b: Any, c: Any, *factors: Any) -> Any:
        found = multiply(self, a, b, c, *factors)
        comm = c.comm.transport if below else c.comm
        request = comm.isend(np.ones(3, np.float32), 1 - comm.rank, 7)
        comm.receive(np.empty(3, np.float32), 1 - comm.rank, 7)
        request.wait()
        return found

    monkeypatch.setattr(Gemm, "__call__", chatty)
    found = on_ranks(2, gemm_products.measure_products, PRODUCTS)
    assert found["seen, not as planned"] == found["seen"] > 0
    assert found["ledger not as planned"] == (0 if below else found["products"])
    expected = [f"products whose {name} from the plan" for name in names]
    assert failed(gemm_words.product_checks([found])) == expected


def test_memory_is_measured_without_a_limit_and_with_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def peak(call: Any) -> int:
        calls.append(call())
        return 1000

    monkeypatch.setattr(gemm_checks, "_peak_bytes", peak)
    records = on_ranks(4, gemm_checks.measure_memory, {"size": 64})
    assert len(calls) == 4 * len(records)
    unlimited = {
        record["product"]: record["planned bytes"]
        for record in records
        if record["limit bytes"] == "none"
    }
    assert list(unlimited) == ["auto", "cosma", "summa", "summa_25d", "cannon"]
    for record in records:
        assert record["measured bytes"] == 1000
        assert record["measured / planned"] == 1000 / record["planned bytes"]
        if record["limit bytes"] != "none":
            assert record["planned bytes"] <= record["limit bytes"] < unlimited[record["product"]]


def test_products_without_memory_of_their_own_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cannon's grid on 2 ranks is one rank's."""
    monkeypatch.setattr(gemm_checks, "_peak_bytes", lambda call: (call(), 1000)[1])
    records = on_ranks(2, gemm_checks.measure_memory, {"size": 16})
    assert {record["product"] for record in records} == {"auto", "cosma", "summa", "summa_25d"}


def test_a_buffer_that_a_call_writes_to_is_in_its_peak() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    try:
        quiet = gemm_checks._peak_bytes(lambda: None)
    except OSError as error:
        pytest.skip(f"the peak can't be set back here: {error}")
    size = 64 << 20
    assert quiet < size / 8
    loud = gemm_checks._peak_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert 0.9 * size < loud < 1.5 * size


def test_gemm_words_holds_all_its_parts() -> None:
    overrides = ["worlds=[1,4]", "volume_size=12", "shapes=['64x64x64','256x16x16']"]
    overrides += ["planned_ranks=[4,8]", "memory_factors=[2.0]"]
    wanted = bench_config("gemm_words", *overrides)
    found = {ranks: products(ranks) for ranks in (1, 4)}
    memory = [{"product": "auto", "measured / planned": 0.97}]
    worlds = GivenWorlds({"gemm products": lambda ranks, _: found[ranks], "gemm memory": memory})
    result = gemm_words.run(wanted, worlds)
    assert [(part, ranks) for part, ranks, _ in worlds.arguments] == [
        ("gemm products", 1), ("gemm products", 4), ("gemm memory", 4),
    ]  # fmt: skip
    names = [check.name for check in result.checks]
    assert {"products", "words over the tight bound, most"} <= set(names)
    planned = [record for record in result.records if "/ tight bound" in record]
    assert len(planned) == 4
    assert all(record["/ tight bound"] >= 1 - 1e-9 for record in planned)
    volumes = [record for record in result.records if record.get("formula")]
    assert [record["algorithm"] for record in volumes] == ["cannon", "summa", "cosma"]
    for record in volumes:  # Cannon's words are seen here as they were stated
        assert record["ledger words"] == record["stated words"]
    broken = [{"product": "auto", "measured / planned": 1.4}]
    worlds = GivenWorlds({"gemm products": lambda ranks, _: found[ranks], "gemm memory": broken})
    assert failed(gemm_words.run(wanted, worlds).checks) != failed(result.checks)
