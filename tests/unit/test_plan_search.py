"""The search of `dist-ml plan --search`: exact, by the seconds of `plan`, and within memory."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from operator_world import SHALLOW
from pipeline_world import SYNCHRONOUS, settings
from plan_world import ideal
from text_world import TEXT, text_config

from dist_ml.cli.main import main
from dist_ml.cli.plan_search import held_keys
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.datasets import open_dataset
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.measure.cost_model import Link
from dist_ml.models import Samples, WholeLayers, build_model
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import LAYOUTS, sides_for
from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.plan import calibrated
from dist_ml.plan.candidates import Candidates
from dist_ml.plan.least_makespan import least_makespan
from dist_ml.plan.model_work import block_keys, block_works
from dist_ml.plan.networked import Machine
from dist_ml.plan.planned_model import PlannedModel, TrainingData
from dist_ml.plan.planned_ranks import PlannedGrid
from dist_ml.plan.search import Found, search
from dist_ml.plan.step_memory import most_bytes
from dist_ml.plan.step_plan import Planner, plan_step
from dist_ml.plan.step_seconds import step_seconds

PLENTY = 1 << 50
MACHINE = Machine(ideal(), cores=2, ranks_per_node=2, network=Link(1e-5, 1e9))


def small() -> TrainConfig:
    return dataclasses.replace(settings(model=SHALLOW), batch_size=4)


def searched(
    config: TrainConfig, ranks: int, room: int = PLENTY, num_best: int = 10, held: str = ""
) -> Found:
    return search(Candidates(config, {held}, ranks, 2), MACHINE, room, num_best)


def by_planning(config: TrainConfig, ranks: int) -> list[float]:
    """Seconds of every candidate that a run takes, the least first."""
    candidates, found, planner = Candidates(config, (), ranks, 2), [], Planner()
    for spread in candidates.spreads():
        sizes = {"data": spread.data, "pipeline": spread.pipeline, "operator": spread.operator}
        for exchange in candidates.exchanges(spread, MACHINE.sums_between_nodes(sizes)):
            try:
                plan = planner.plan(exchange.configured(spread.configured(config)), ranks)
            except DistMLError:
                continue
            found.append(step_seconds(plan, MACHINE).total)
    return sorted(found)


def test_the_best_are_those_of_all_candidates() -> None:
    config = small()
    found, every = searched(config, 4), by_planning(config, 4)
    assert [choice.seconds.total for choice in found.best] == every[:10]
    left = found.refused.total() + found.too_large
    assert 10 <= found.costed < len(every) <= found.candidates - left
    # without a limit nothing is left to a bound
    everything = searched(config, 4, num_best=1 << 20)
    assert everything.costed == len(everything.best) == len(every)


def test_searching_and_planning_say_the_same() -> None:
    for choice in searched(text_config(batch_size=4), 2).best:
        plan = plan_step(choice.config, 2)
        assert step_seconds(plan, MACHINE) == choice.seconds
        assert {"program": 0, **most_bytes(plan)} == choice.memory


def test_what_does_not_fit_is_left_out() -> None:
    config = dataclasses.replace(small(), mesh=MeshConfig(None, None, 1))
    held = "mesh.operator"
    every = searched(config, 4, PLENTY, 1 << 20, held).best
    sizes = [sum(choice.memory.values()) for choice in every]
    room = sorted(sizes)[len(sizes) // 3]
    found = searched(config, 4, room, 1 << 20, held)
    assert len(found.best) == sum(size <= room for size in sizes)
    assert found.too_large >= len(sizes) - len(found.best)  # or refused, had they been planned
    nothing = searched(config, 4, 1, 10, held)
    assert not nothing.best
    assert nothing.smallest_bytes is not None
    assert nothing.smallest_bytes <= min(sizes)


def test_many_ranks_take_little_time() -> None:
    """Most of 16,384 ranks' candidates are never planned."""
    config = text_config(batch_size=1 << 14, model={"depth": 12})
    machine = Machine(ideal(), cores=8, ranks_per_node=8, network=Link(1e-6, 1e10))
    config = dataclasses.replace(config, mesh=MeshConfig(None, None, 1))
    found = search(Candidates(config, ("mesh.operator",), 1 << 14, 8), machine, PLENTY)
    assert len(found.best) == 10
    assert found.costed < found.candidates / 10


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 16)])
def test_no_schedule_is_faster_than_its_bound(name: str, ranks: int, microbatches: int) -> None:
    kind = make(name, Request(ranks, 2 * ranks))
    schedule = make(name, Request(ranks, microbatches))
    drawn = random.Random(ranks * microbatches)
    for _ in range(5):
        parts = [[drawn.uniform(0.2, 3) for _ in range(schedule.num_stages)] for _ in range(2)]
        halves = tuple(part / 2 for part in parts[1])
        costs = Costs(tuple(parts[0]), halves, halves, drawn.uniform(0, 0.5))
        found = dry_run(schedule, costs).makespan
        assert 0.5 * found < least_makespan(kind, microbatches, costs) <= found + 1e-9
    uniform = Costs.uniform(schedule.num_stages)
    if name in ("gpipe", "one_f_one_b"):
        bound = least_makespan(kind, microbatches, uniform)
        assert bound == pytest.approx(dry_run(schedule, uniform).makespan)


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize(
    ("config", "samples"),
    [
        (ModelConfig("mlp", hidden=(24,) * 5, dropout=0.1), Samples((12,), 8)),
        (
            ModelConfig("transformer", width=24, depth=3, heads=4, activation="gelu", dropout=0.1),
            Samples((16,), 32, "next_token"),
        ),
        (ModelConfig("cnn", channels=(8, 8), groups=4), Samples((1, 8, 8), 4)),
    ],
    ids=["mlp", "transformer", "cnn"],
)
def test_repeated_blocks_are_recorded_once(
    config: ModelConfig, samples: Samples, layout: str | None
) -> None:
    if layout is not None and config.name == "cnn" and not LAYOUTS[layout].replicated:
        return  # convolutions are cut in one way
    works = []
    for alike in (True, False):
        grid = PlannedGrid(sides_for(layout, 4, ())) if layout else None
        layers = ParallelLayers(grid, layout or "", {}, "torch") if grid else WholeLayers()
        with torch.device("meta"):
            model = build_model(config, samples, 0, layers=layers)
        keys = block_keys(model)
        assert len(set(keys)) < len(keys)
        task = samples.task == "next_token"
        inputs = torch.zeros(1, samples.num_features, dtype=torch.int64 if task else torch.float32)
        sent = grid.sent if grid else None
        own = keys if alike else list(range(len(keys)))
        block_works(model, inputs, 1, False, sent, own)  # the first pass makes tables
        found, _ = block_works(model, inputs, 8, False, sent, own)
        works.append(found)
    folded, every = works
    for one, other in zip(folded, every, strict=True):
        assert one._replace(forward=None, backward=None) == other._replace(
            forward=None, backward=None
        )
        for ours, theirs in ((one.forward, other.forward), (one.backward, other.backward)):
            assert ours.sent == theirs.sent
            assert [operator[:5] for operator in ours.operators] == [
                operator[:5] for operator in theirs.operators
            ]


def test_keys_that_the_command_line_names_are_held() -> None:
    assert held_keys(["pipeline=gpipe", "batch_size=8", "+mesh.data=2"]) == {
        "pipeline.name", "mesh.data"
    }  # fmt: skip
    held = held_keys(["pipeline.name=zb_h1", "mesh.pipeline=2", "allreduce.wire=fp32"])
    config = dataclasses.replace(
        small(), pipeline=dataclasses.replace(small().pipeline, name="zb_h1"),
        mesh=dataclasses.replace(small().mesh, data=None, pipeline=2, operator=1),
    )  # fmt: skip
    candidates = Candidates(config, held, 8, 8)
    spreads = list(candidates.spreads())
    assert {(spread.pipeline, spread.schedule) for spread in spreads} == {(2, "zb_h1")}
    assert {spread.data for spread in spreads} == {1, 2, 4}
    wires = {each.wire for spread in spreads for each in candidates.exchanges(spread, True)}
    assert wires == {"fp32"}


def test_what_cannot_be_searched_is_refused() -> None:
    config = small()
    local = dataclasses.replace(config.data_parallel, name="periodic")
    with pytest.raises(ConfigError, match="not modelled"):
        searched(dataclasses.replace(config, data_parallel=local), 2)


def test_the_command_finds_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "plan.json"
    asked = ["model.hidden=[64,64]", "data=synthetic"]
    wanted = ["plan", "--search", "-n", "2", "--json", str(file), "precision=fp32", *asked]
    assert main(wanted) == 2
    assert "not calibrated" in capsys.readouterr().err
    calibrated.store(ideal())
    assert main([*wanted, "--memory", "64GB"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    for words in ("searched", "held        precision", "candidates", "why", "the best"):
        assert words in told
    found = json.loads(file.read_text())
    assert found["rank_bytes"] == 32 * 10**9
    for choice in found["best"][:2]:
        overrides = ["-n", "2", "--json", str(file), *asked, *choice["overrides"]]
        assert main(["plan", *overrides]) == 0
        assert json.loads(file.read_text())["seconds"] == choice["seconds"]
    assert main([*wanted, "mesh.data=2", "--memory", "1kB"]) == 0
    assert "nothing fits" in capsys.readouterr().out
    assert main(["plan", "-n", "2", "--memory", "64GB"]) == 2
    assert main([*wanted, "--memory", "lots"]) == 2


@pytest.mark.parametrize(
    ("layout", "autocast"), [("", False), ("", True), ("1d", False)], ids=["whole", "bf16", "1d"]
)
def test_works_of_any_size_follow_from_two(layout: str, autocast: bool) -> None:
    text = dataclasses.replace(TEXT, num_tokens=16)
    config = text_config(model={"width": 32, "heads": 4}, precision="fp32", data=text)
    sides = sides_for(layout, 4, ()) if layout else None
    data = TrainingData.of(open_dataset(config.data, torch.float32).train)
    model = PlannedModel(config, data, torch.float32, layout, sides)
    for b in (4, 7):
        scaled, recorded = model._scaled(b, autocast), model._recorded(b, autocast)
        assert scaled is not None
        for one, other in zip(scaled, recorded, strict=True):
            assert one.forward.sent == other.forward.sent
            assert one.backward.sent == other.backward.sent
            assert (one.kept_bytes, one.output_bytes) == (other.kept_bytes, other.output_bytes)
            for ours, theirs in ((one.forward, other.forward), (one.backward, other.backward)):
                found = [operator._replace(call=None) for operator in theirs.operators]
                assert list(ours.operators) == found


def test_bounds_know_that_ranks_share_cores() -> None:
    """Pipelines of eight ranks on one core: what that has to do in all rules most of them out."""
    config = text_config(batch_size=64, model={"depth": 12, "width": 64})
    config = dataclasses.replace(config, mesh=MeshConfig(None, 8, 1))
    machine = Machine(ideal(), cores=1, ranks_per_node=8, network=Link(0.0, 1e15))
    held = ("mesh.pipeline", "mesh.operator")
    found = search(Candidates(config, held, 64, 8), machine, PLENTY)
    assert found.costed < found.candidates / 8
