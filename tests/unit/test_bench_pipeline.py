"""The measuring parts of the pipeline benchmarks at tiny size, and their checks on bad data."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ml.bench import pipeline, pipeline_part, pipeline_torch, pipeline_torch_part
from dist_ml.bench.pipeline import PipelineBench
from dist_ml.bench.pipeline_plan import plan
from dist_ml.bench.pipeline_torch import PipelineTorchBench
from dist_ml.bench.sleeping_model import WIDTH, SleepingModel
from dist_ml.nn.backward_part import backward_part
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedules import family
from dist_ml.pipeline_parallel.schedules.request import Request
from tests.thread_world import run_ranks
from tests.unit.bench_worlds import GivenWorlds, alone, on_threads

NAMES = ("gpipe", "one_f_one_b", "zb_v", "pipedream_2bw")
CONFIG = PipelineBench("mpich", (2,), (2,), NAMES, (1, 1, 1), 5, None)
TORCH = PipelineTorchBench("mpich", 2, 4, ("gpipe",), (1, 10), 8, 8, 1, 5, 4)


def test_sleeping_steps_hold_and_send_what_the_schedule_says() -> None:
    arguments = {
        "schedules": ["gpipe", "zb_h1", "zb_v"],
        "microbatches": 3,
        "seconds": [1e-4] * 3,
        "rounds": 2,
    }
    found = on_threads(2, pipeline_part.measure, arguments)
    for name in ("gpipe", "zb_h1", "zb_v"):
        proof = prove(family.make(name, Request(2, 3)))
        assert found["activations"][name] == list(proof.memory.activations)
        assert found["messages"][name] == sum(proof.messages)
        assert len(found["seconds"][name]) == 2
        assert min(found["seconds"][name]) > 0
        ran = [[action for action, _, _ in rank] for rank in found["timed_actions"][name]]
        schedule = family.make(name, Request(2, 3))
        assert ran == [[str(action) for action in rank] for rank in schedule.actions]


def test_only_schedules_that_take_the_numbers_are_run() -> None:
    wanted = ["gpipe", "chimera", "chimera@2", "zb_v"]
    assert pipeline_part.names_for(wanted, 4, 4) == ["gpipe", "chimera", "chimera@2"]
    assert pipeline_part.names_for(wanted, 3, 6) == ["gpipe", "zb_v"]


def test_a_block_sleeps_by_the_part_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dist_ml.bench.sleeping_model.time.sleep", slept.append)
    model = SleepingModel(1, (1.0, 2.0, 4.0))
    for part, seconds in (("whole", 6.0), ("input", 2.0), ("weight", 4.0)):
        x = torch.zeros(1, WIDTH, requires_grad=True)
        outputs = model(x)
        with backward_part(part):  # type: ignore[arg-type]
            outputs.sum().backward()
        assert slept[-2:] == [1.0, seconds]
    model(torch.zeros(1, WIDTH)).sum().backward()
    assert slept[-1] == 4.0  # inputs of the model need no gradient


def found(factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    """As the ranks would find it if every step took its planned time times `factor`."""
    names = CONFIG.schedules
    plans = {name: plan(name, 2, 4, [1e-3] * 3) for name in names}
    return {
        "seconds": {name: [factor * plan.seconds] * 5 for name, plan in plans.items()},
        "activations": {name: list(plan.activations) for name, plan in plans.items()},
        "messages": {name: plan.messages for name, plan in plans.items()},
        "timed_actions": {
            name: [
                [
                    (str(action), 7 + factor * start, 7 + factor * stop)
                    for action, start, stop in rank
                ]
                for rank in plan.timeline.ranks
            ]
            for name, plan in plans.items()
        },
        **changes,
    }


def test_what_is_as_planned_passes() -> None:
    result = pipeline.run(CONFIG, GivenWorlds({"pipeline": found()}))
    assert result.passed
    row = {record["schedule"]: record for record in result.records}["one_f_one_b"]
    assert row["measured_bubble"] == pytest.approx(row["planned_bubble"])
    assert row["over_one_f_one_b"] == 1
    assert row["measured_activations"] == 2  # D on the first stage
    assert row["planned_messages"] == 2 * 4


def test_the_picture_has_each_schedule_measured_above_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pipeline, "draw", lambda *arguments: drawn.append(arguments))
    config = dataclasses.replace(CONFIG, plot="x.png")
    pipeline.run(config, GivenWorlds({"pipeline": found(1.5)}))
    ((pictures, file, unit),) = drawn
    assert (file, unit) == ("x.png", "milliseconds")
    assert list(pictures)[:2] == ["gpipe, measured: 21 ms", "gpipe, planned: 14 ms"]
    assert [title.split(",")[0] for title in pictures][::2] == list(CONFIG.schedules)
    measured, planned = list(pictures.values())[:2]
    for ours, theirs in zip(measured.ranks, planned.ranks, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.action == other.action
            assert one.start - 7e3 == pytest.approx(1.5 * other.start)
            assert one.stop - 7e3 == pytest.approx(1.5 * other.stop)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra")
    file = tmp_path / "x.png"
    config = dataclasses.replace(CONFIG, plot=str(file))
    pipeline.run(config, GivenWorlds({"pipeline": found()}))
    assert file.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("bad", "failed"),
    [
        (found(1.1), "step over its plan"),
        (found(activations={name: [9, 9] for name in CONFIG.schedules}), "peak activations"),
        (found(messages=dict.fromkeys(CONFIG.schedules, 7)), "messages unlike the plan"),
        (found(float("nan")), "step over its plan"),
    ],
    ids=["slow", "activations", "messages", "nan"],
)
def test_what_is_not_as_planned_fails(bad: dict[str, Any], failed: str) -> None:
    result = pipeline.run(CONFIG, GivenWorlds({"pipeline": bad}))
    assert [failed in check.name for check in result.checks if not check.passed] == [True]


def test_the_first_stage_has_no_input_to_give_a_gradient_to() -> None:
    """GPipe on two stages, two micro-batches: B takes 2 on the last, and 1 on the first."""
    assert plan("gpipe", 2, 2, [1.0, 1.0, 1.0]).seconds == 1 + 2 + 2 * 2 + 1


def test_steps_that_run_into_each_other_are_planned_without_a_bubble() -> None:
    """But for the part that the first stage doesn't have."""
    planned = plan("pipedream_2bw", 4, 6, [1.0, 1.0, 1.0])
    assert planned.seconds == 6 * 3
    assert planned.bubble == pytest.approx(6 / (4 * 18))
    assert planned.activations == (4, 3, 2, 1)
    assert planned.messages == 6 * 2 * 3
    assert [str(timed.action) for timed in planned.timeline.ranks[0]][:4] == [
        *("0F3", "0B0", "0F4", "0B1"),
    ]
    assert {len(rank) for rank in planned.timeline.ranks} == {12}


def test_sleeping_steps_run_into_each_other() -> None:
    name, seconds = "pipedream_2bw", [1e-3] * 3
    arguments = {"schedules": [name], "microbatches": 3, "seconds": seconds, "rounds": 2}
    found = on_threads(3, pipeline_part.measure, arguments)
    planned = plan(name, 3, 3, seconds)
    assert found["activations"][name] == list(planned.activations)
    assert found["messages"][name] == planned.messages
    for ours, theirs in zip(found["timed_actions"][name], planned.timeline.ranks, strict=True):
        assert [action for action, _, _ in ours] == [str(timed.action) for timed in theirs]
    assert min(found["seconds"][name]) >= planned.seconds


@pytest.mark.parametrize("name", ["gpipe", "one_f_one_b"])
@pytest.mark.parametrize("seconds", [[], [1e-4, 1e-4, 1e-4]], ids=["computes", "sleeps"])
def test_our_step_gives_the_gradients_of_the_whole_model(name: str, seconds: list[float]) -> None:
    size, width = 3, WIDTH if seconds else 6
    arguments = {"seconds": seconds, "width": width}
    inputs, targets = torch.randn(5, width), torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(7)
    whole = pipeline_torch_part.model_of(arguments, size)
    torch.nn.functional.cross_entropy(whole(inputs), targets).backward()  # type: ignore[no-untyped-call]

    def step(comm: Any) -> list[torch.Tensor]:
        batch = pipeline_torch_part.FixedBatch(inputs, targets, 4)
        with torch.device("meta"):
            model = pipeline_torch_part.model_of(arguments, size)
        schedule = family.make(name, Request(size, 4))
        run = pipeline_torch_part.our_step(comm, schedule, model, batch)
        block = model.blocks()[comm.rank].module
        block.load_state_dict(whole.blocks()[comm.rank].module.state_dict())
        run()
        return [parameter.grad for parameter in block.parameters() if parameter.grad is not None]

    for rank, gradients in enumerate(run_ranks(size, step)):
        expected = [parameter.grad for parameter in whole.blocks()[rank].module.parameters()]
        assert len(gradients) == len(expected)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_executor_alone() -> None:
    arguments = {"microbatches": 3, "width": 4, "batch": 7, "rounds": 2}
    result = alone(pipeline_torch_part.measure_executor, arguments)
    assert result["actions"] == 6
    assert {name: len(values) for name, values in result["seconds"].items()} == {
        "ours": 2,
        "loop": 2,
    }


@pytest.mark.parametrize(
    ("ours", "executor", "failed"),
    [
        (0.5, 20e-6, set()),
        (0.8, 20e-6, {"step over torch's, gpipe, 1 ms"}),
        (
            1.2,
            20e-6,
            {f"step over torch's, gpipe, {stage}" for stage in ("1 ms", "10 ms", "computes")},
        ),
        (0.5, 40e-6, {"the executor's microseconds an action"}),
        (
            0.5,
            2e-3,
            {
                "the executor's microseconds an action",
                "a one-stage pipeline's step over the plain step",
            },
        ),
    ],
    ids=["good", "short stages", "slow", "executor", "one stage"],
)
def test_checks_against_torch(ours: float, executor: float, failed: set[str]) -> None:
    worlds = GivenWorlds(
        {
            "pipeline_torch": {"ours": [ours] * 5, "torch": [1.0] * 5},
            "pipeline_executor": {
                "seconds": {"ours": [1.0 + 8 * executor] * 5, "loop": [1.0] * 5},
                "actions": 8,
            },
        }
    )
    result = pipeline_torch.run(TORCH, worlds)
    assert {check.name for check in result.checks if not check.passed} == failed
    sizes = [arguments["batch"] for _, _, arguments in worlds.arguments]
    assert sizes == [4, 4, 8, 4, 8]


def test_torch_is_asked_for_the_same_schedules() -> None:
    assert set(pipeline_torch_part.TORCH_SCHEDULES) <= set(family.SCHEDULES)
