"""Seconds of a planned step: curves, products, constants, and how they add up."""

import dataclasses
import json
import time

import pytest
from operator_world import SHALLOW, on_mesh
from pipeline_world import settings
from plan_world import RATE, ideal
from thread_world import run_ranks

from dist_ml.cli.main import main
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError, MachineError
from dist_ml.measure import cache
from dist_ml.measure.cost_model import Link
from dist_ml.plan import (
    calibrate,
    calibrated,
    constants,
    machine,
    measured_exchanges,
    measured_rates,
    timing,
)
from dist_ml.plan.curves import Curve, Products
from dist_ml.plan.links import link_named
from dist_ml.plan.machine import Constants
from dist_ml.plan.networked import Machine
from dist_ml.plan.operators import Operator
from dist_ml.plan.planned_ranks import Collective
from dist_ml.plan.step_plan import plan_step
from dist_ml.plan.step_seconds import step_seconds


def test_a_curve_goes_along_the_logarithms() -> None:
    curve = Curve.through({100.0: 4e-6, 1.0: 1e-6, 10_000.0: 4e-4})
    assert curve.at(0.5) == curve.at(1) == 1e-6
    assert curve.at(10) == pytest.approx(2e-6)
    assert curve.at(1000) == pytest.approx(4e-5)
    assert curve.at(20_000) == pytest.approx(8e-4)


def test_products_between_measured_ones() -> None:
    assert ideal().warm.products["NN"].at(100, 300, 70) == pytest.approx(2 * 100 * 300 * 70 / RATE)
    # a size that takes too long to measure has the rate of the largest below
    fast = Products(
        {sizes: s for sizes, s in ideal().warm.products["NN"].seconds.items() if max(sizes) < 4096}
    )
    assert fast.at(8192, 8192, 8192) == pytest.approx(2 * 8192**3 / RATE)
    slow = dict(ideal().warm.products["NN"].seconds)
    slow[64, 64, 64] *= 4
    assert Products(slow).at(64, 64, 64) == pytest.approx(4 * 2 * 64**3 / RATE)
    between = Products(slow).at(128, 64, 64) / (2 * 128 * 64 * 64 / RATE)
    assert 1 < between < 4


def test_an_operator_that_was_not_measured_moves_its_bytes() -> None:
    unknown = Operator("swish_of_tomorrow", flops=10**9, num_bytes=1000)
    assert ideal().warm.operator(unknown) == pytest.approx(1e-6)
    batched = Operator("bmm", 0, 0, product=(8, 8, 8), times=5)
    assert ideal().warm.operator(batched) == pytest.approx(5 * 2 * 8**3 / RATE)


def test_what_is_kept_is_read_again(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="dist-ml launch -n 2 calibrate"):
        calibrated.load(2, 1)
    calibrated.store(ideal(2))
    assert calibrated.load(4, 1) == calibrated.load(1, 1) == ideal(2)
    calibrated.store(ideal(1))
    assert calibrated.load(1, 1) == ideal(1)
    name = calibrated._name(1)
    for damage in ({"ranks": 1}, {**ideal().to_mapping(), "loading": {"text": [[1], [-1]]}}, 7):
        cache.store(name, {"1": damage})
        with pytest.raises(MachineError, match="not calibrated"):
            calibrated.load(1, 1)


def test_a_step_is_its_products_on_an_ideal_machine() -> None:
    config = settings(model=SHALLOW)
    plan = plan_step(config, 1)
    found = step_seconds(plan, Machine(ideal(), cores=2, ranks_per_node=1))
    flops = config.accumulation * sum(block.flops for block in plan.stages[0].blocks)
    assert found.phases["forward"] + found.phases["backward"] > flops / RATE
    with_constants = dataclasses.replace(ideal(), constants=Constants(1.0, 7.0, 100.0))
    slower = step_seconds(plan, Machine(with_constants, cores=2, ranks_per_node=1))
    calls = sum(
        len(block.forward.operators) + len(block.backward.operators)
        for block in plan.stages[0].blocks
    )
    assert slower.total == pytest.approx(found.total + config.accumulation * (calls + 7) + 100)


def test_ranks_beyond_the_cores_take_turns() -> None:
    plan = plan_step(on_mesh(settings(model=SHALLOW), 4, 1, 1), 4)
    alone = step_seconds(plan, Machine(ideal(), cores=4, ranks_per_node=4))
    shared = step_seconds(plan, Machine(ideal(), cores=2, ranks_per_node=4))
    assert shared.phases["backward"] == pytest.approx(2 * alone.phases["backward"])


def test_a_pipeline_takes_its_dry_run() -> None:
    config = on_mesh(settings(model=SHALLOW), 1, 2, 1, schedule="gpipe")
    plan = plan_step(config, 2)
    found = step_seconds(plan, Machine(ideal(), cores=2, ranks_per_node=2))
    busiest = max(
        sum(
            sum(map(ideal().warm.operator, (*block.forward.operators, *block.backward.operators)))
            for block in stage.blocks
        )
        for stage in plan.stages
    )
    assert found.phases["pipeline"] > plan.schedule.num_microbatches * busiest
    assert 0 < found.bubble < 1


def test_what_does_not_fit_into_the_cache_comes_from_memory() -> None:
    plan = plan_step(settings(model=SHALLOW), 1)
    none = dataclasses.replace(ideal(), own_cache_bytes=1, cache_bytes=1)
    warm, cold = (
        step_seconds(plan, Machine(each, cores=1, ranks_per_node=1)).phases
        for each in (ideal(), none)
    )
    for phase in ("forward", "backward", "update"):
        assert cold[phase] == pytest.approx(2 * warm[phase])
    both = dataclasses.replace(ideal(), own_cache_bytes=100, cache_bytes=400)
    machine = Machine(both, cores=4, ranks_per_node=4)
    shares = [machine.in_memory(size, 1) for size in (50, 100, 200, 400, 800)]
    assert shares == pytest.approx([0, 0, 0.5, 1, 1])
    assert [machine.in_memory(size, 2) for size in (100, 200)] == [0, 1]
    assert [machine.in_memory(size, 9) for size in (100, 101)] == [0, 1]


def test_a_bubble_leaves_its_core_to_others() -> None:
    config = on_mesh(settings(model=SHALLOW), 2, 2, 1, schedule="gpipe")
    plan = plan_step(config, 4)
    alone, shared = (
        step_seconds(plan, Machine(ideal(), cores, ranks_per_node=4)).phases["pipeline"]
        for cores in (4, 2)
    )
    assert alone < shared < 2 * alone


def test_ranks_reach_each_other_between_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs and all; what is measured is what the exchange adds, alike on all ranks."""
    monkeypatch.setattr(measured_exchanges, "_BYTES", (64, 4096))
    monkeypatch.setattr(timing, "_ROUNDS", 1)
    monkeypatch.setattr(timing, "_MOST_CALLS", 3)

    def body(comm: Communicator) -> tuple[dict[int, Curve], Curve | None]:
        allreduces = measured_exchanges.measure_allreduces(comm, "native")
        return allreduces, measured_exchanges.measure_messages(comm)

    allreduces, message = run_ranks(4, body)[0]
    assert sorted(allreduces) == [2, 4]
    assert message is not None
    assert message.sizes == allreduces[4].sizes == (64, 4096)
    assert timing.between_work(Communicator(Loopback()), lambda: time.sleep(0.01)) >= 0.01


def test_axes_cross_nodes_from_the_outside() -> None:
    sizes = {"data": 2, "pipeline": 2, "operator": 2}
    four = Machine(ideal(), cores=4, ranks_per_node=4, network=Link(1.0, 1e9))
    assert [four.crosses_nodes(axis, sizes) for axis in sizes] == [True, False, False]
    # a ring of two ranks over the link: two messages, as many bytes as the vector has, of each of
    # the four ranks of a node
    assert four.gradient_sum(1e9, sizes) == pytest.approx(2 * 1.0 + 4.0)
    assert four.message(1e9, sizes) == pytest.approx(1.0)  # inside the node
    gathered = Collective("allgather", 2, 1000, 500)
    assert four.collective(gathered, "operator", sizes) == pytest.approx(0.5e-6)


def test_links_by_name() -> None:
    assert link_named("1gbit").bytes_per_second == 125e6
    with pytest.raises(ConfigError, match="network"):
        link_named("carrier pigeon")


def test_calibration_measures_what_a_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ROUND_SECONDS", 0.0)
    monkeypatch.setattr(timing, "_ROUNDS", 1)
    monkeypatch.setattr(measured_rates, "_MOST_FLOPS", 1 << 14)
    monkeypatch.setattr(measured_rates, "_MODELS", measured_rates._MODELS[2:3])
    monkeypatch.setattr(measured_rates, "_PARAMETERS", (16, 64))
    monkeypatch.setattr(measured_rates, "_MOST_COPIES", 2)
    monkeypatch.setattr(constants, "_STEPS", 12)
    told: list[str] = []
    found = calibrate.calibrate(Communicator(Loopback()), told.append)
    assert told == ["matrix products", "operators", "optimizers", "batches", "steps"]
    assert (
        {"gelu", "gelu_backward", "native_layer_norm", "add", "sum"}
        <= set(found.warm.curves)
        == set(found.cold.curves)
    )
    assert found.base_bytes > 50e6
    assert machine.Processor.from_mapping(json.loads(json.dumps(found.to_mapping()))) == found
    plan = plan_step(settings(model=SHALLOW), 1)
    assert step_seconds(plan, Machine(found, 1, 1)).total > 0


def test_the_command(tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = f"{tmp_path}/plan.json"
    assert main(["plan", "-n", "4", "mesh.data=2", "mesh.operator=2"]) == 0
    told = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "operator words" in told
    assert "not calibrated" in told
    calibrated.store(ideal())
    assert main(["plan", "--nodes", "2", "-n", "4", "mesh.data=4", "--json", file]) == 0
    told = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "samples/s" in told
    with open(file) as stream:
        found = json.load(stream)
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_phase"].values()))
    assert main(["plan", "-n", "3", "mesh.data=2"]) == 2
    assert main(["plan", "-n", "2", "--nodes", "2", "--network", "wet string"]) == 2
    assert main(["plan", "-n", "2", "--nodes", "3"]) == 2
    assert main(["plan", "--json", "/nowhere/plan.json"]) == 2
    assert main(["plan", "-n", "4", "reproduce=bitwise", "reproduce.shards=6"]) == 2
    assert "Traceback" not in capsys.readouterr().err  # type: ignore[attr-defined]
    monkeypatch.setenv("OMP_NUM_THREADS", "four")
    assert main(["plan"]) == 0
