"""Runs that leave a timeline, on meshes of threads."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.allreduce import AllreduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.trace import TraceConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.timer import Phases
from dist_ml.train import logs, step_trace
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.run import train_run
from tests import trace_rules
from tests.configurations import train_config
from tests.operator_world import on_mesh
from tests.pipeline_world import settings
from tests.thread_world import run_ranks
from tests.trace_rules import Timeline
from tests.unit.resume_worlds import break_off
from tests.unit.resume_worlds import train as resumable

TRACE = TraceConfig(True, skip=1, steps=4)  # of 6 steps in two epochs


def config(folder: Path, *sizes: int, trace: TraceConfig = TRACE, **changes: Any) -> TrainConfig:
    sizes = sizes or (1, 1, 1)
    schedule = {"schedule": changes.pop("schedule", "one_f_one_b")} if sizes[1] > 1 else {}
    whole = settings(epochs=2, folder=str(folder / "run"), trace=trace, **changes)
    return on_mesh(whole, *sizes, **schedule)


def traced(wanted: TrainConfig) -> Timeline:
    """The timeline of a run on threads."""
    mesh = wanted.mesh
    size = mesh.data * mesh.pipeline * mesh.operator  # type: ignore[operator]
    run_ranks(size, lambda comm: train_run(wanted, comm))
    logs.stop()
    (file,) = (Path(wanted.folder) / "trace").glob("*.json.gz")
    return trace_rules.read(file)


def names(timeline: Timeline, rank: int, track: str) -> list[str]:
    return [each.name for each in timeline.of(rank, track)]


@pytest.mark.parametrize(
    ("sizes", "schedule"),
    [
        ((2, 1, 1), "one_f_one_b"),
        ((1, 2, 1), "one_f_one_b"),
        ((1, 1, 2), "one_f_one_b"),
        ((1, 4, 1), "chimera"),
        ((2, 2, 2), "one_f_one_b"),
    ],
)
def test_meshes(tmp_path: Path, sizes: tuple[int, int, int], schedule: str) -> None:
    changes = {"schedule": schedule} if sizes[1] > 1 else {}
    timeline = traced(config(tmp_path, *sizes, **changes))
    trace_rules.require_arrows(timeline)
    data, pipeline, operator = sizes
    assert timeline.arrows
    assert timeline.told["steps"] == [1, 2, 3, 4]
    assert timeline.told["clock"]["error_us"] == 0
    assert timeline.told["calls_left_out"] == 0
    for rank in range(data * pipeline * operator):
        assert names(timeline, rank, "steps") == [f"step {n}" for n in range(1, 5)]
        assert {"forward", "backward", "optimizer"} <= set(names(timeline, rank, "compute"))
        actions = [name for name in names(timeline, rank, "compute") if name.startswith("PP:")]
        assert sorted(actions) == sorted(names(timeline, rank, "planned"))
        assert len(actions) >= (8 * pipeline if pipeline > 1 else 0)
        steps = timeline.of(rank, "steps")
        for each in timeline.of(rank, "compute"):
            assert any(step.start <= each.start <= each.stop <= step.stop for step in steps)
    per_rank = sorted((tmp_path / "run/trace/steps-1-4").iterdir())
    assert [file.name for file in per_rank] == [
        f"rank-{rank:04}.json.gz" for rank in range(data * pipeline * operator)
    ]


def test_the_plan_of_a_step_begins_with_it_and_is_what_the_schedule_says(tmp_path: Path) -> None:
    """A rank's planned actions are in the schedule's order; before the first one of stage 1 lies
    one of stage 0.
    """
    timeline = traced(config(tmp_path, 1, 2, 1))
    first, second = (timeline.of(rank, "planned") for rank in (0, 1))
    expected = ["PP:0F0", "PP:0F1", "PP:0B0", "PP:0F2", "PP:0B1", "PP:0F3", "PP:0B2", "PP:0B3"]
    assert [each.name for each in first[:8]] == expected
    assert second[0].name == "PP:1F0"
    assert second[0].start >= first[0].stop - 1
    measured = [each for each in timeline.of(0, "compute") if each.name == "PP:0F0"]
    starts = [each.start for each in first if each.name == "PP:0F0"]
    assert starts == pytest.approx([each.start for each in measured], abs=2)


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((1, 2, 1), {"schedule": "zb_h1"}),  # steps begin before the one ahead is validated
        ((1, 2, 1), {"schedule": "pipedream_2bw"}),
        ((2, 1, 1), {"allreduce": AllreduceConfig("ring", overlap="thread", bucket_bytes=64)}),
        ((2, 1, 1), {"sparse": SparseConfig("oktopk", density=0.5)}),
        ((3, 1, 1), {"accumulation": 3, "batch_size": 13}),
    ],
)
def test_whatever_goes_on_at_once_keeps_the_rules(
    tmp_path: Path, sizes: tuple[int, int, int], changes: dict[str, Any]
) -> None:
    """A message that is under way when the last step ends may have no arrow."""
    timeline = traced(config(tmp_path, *sizes, **changes))
    assert len(timeline.arrows) == timeline.told["arrows"] > 0
    assert all(arrow.nanoseconds > 0 for arrow in timeline.arrows)
    if changes.get("schedule") == "pipedream_2bw":
        assert timeline.of(0, "planned") == []


def test_one_rank_has_a_timeline_too_with_torchs_operators(tmp_path: Path) -> None:
    timeline = traced(config(tmp_path, trace=TraceConfig(True, 0, 2, profiler=True)))
    assert timeline.arrows == []
    (first, second) = timeline.of(0, "steps")
    operators = [each for each in timeline.slices if each.track.startswith("torch")]
    products = [each for each in operators if each.name == "aten::addmm"]
    assert products
    assert all(first.start <= each.start and each.stop <= second.stop for each in products)
    forward = timeline.of(0, "compute")[0]
    assert any(forward.start <= each.start and each.stop <= forward.stop for each in products)


def test_a_run_that_ends_before_leaves_what_it_did_where_it_was_told(tmp_path: Path) -> None:
    wanted = config(tmp_path, trace=TraceConfig(True, 4, 50, str(tmp_path / "elsewhere")))
    train_run(wanted, Communicator(Loopback()))
    logs.stop()
    assert not (tmp_path / "run/trace").exists()
    timeline = trace_rules.read(tmp_path / "elsewhere/steps-4-5.json.gz")
    assert [each.name for each in timeline.of(0, "steps")] == ["step 4", "step 5"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"


def test_a_run_that_is_stopped_and_goes_on_has_a_timeline_of_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = TraceConfig(True, 1, 50)
    with monkeypatch.context() as stopping:
        break_off(stopping, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert resumable(tmp_path / "run", trace=trace)["status"] == "stopped"
    assert resumable(tmp_path / "run", trace=trace)["status"] == "finished"
    files = sorted((tmp_path / "run/trace").glob("*.json.gz"))
    assert [file.name for file in files] == ["steps-1-2.json.gz", "steps-4-8.json.gz"]
    assert [len(trace_rules.read(file).told["steps"]) for file in files] == [2, 5]


def test_too_many_calls_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_trace, "MOST_CALLS", 10)
    timeline = traced(config(tmp_path, 1, 2, 1))
    calls = [each for each in timeline.slices if each.track.startswith(("coll", "mess"))]
    assert len(calls) == timeline.told["calls"] == 20
    assert timeline.told["calls_left_out"] > 0
    assert all(arrow.nanoseconds > 0 for arrow in timeline.arrows)


def test_without_it_nothing_is_noted(tmp_path: Path) -> None:
    wanted = config(tmp_path, trace=TraceConfig())
    world = Communicator(Loopback())
    assert type(build_trainer(wanted, build_mesh(wanted, world)).phases) is Phases
    train_run(wanted, world)
    logs.stop()
    assert not (tmp_path / "run/trace").exists()


def test_true_and_its_keys_in_any_order() -> None:
    assert train_config().trace == TraceConfig()
    for overrides in (("trace=true", "trace.steps=3"), ("trace.steps=3", "trace=true")):
        assert train_config(*overrides).trace == TraceConfig(True, steps=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skip": -1}, "skip=-1 must be at least 0"),
        ({"steps": 0}, "steps=0 must be from 1 to 1,000"),
        ({"steps": 1001}, "steps=1001 must be"),
        ({"folder": " "}, "folder is empty"),
        ({"skip": 6}, "trace.skip=6 leaves out all of the run's 6 steps; set trace.skip=0"),
        ({"enabled": False, "skip": 2, "steps": 3}, "trace.steps=3 has no effect with trace=false"),
        ({"folder": "/proc/nowhere"}, "trace.folder=/proc/nowhere can't be made: .*; choose"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    def attempt() -> None:
        trace = dataclasses.replace(TRACE, **changes)
        train_run(config(tmp_path, trace=trace), Communicator(Loopback()))

    with pytest.raises(ConfigError, match=words):
        attempt()
    logs.stop()
