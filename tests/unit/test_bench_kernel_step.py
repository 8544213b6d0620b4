"""The part of `dist-ml bench step kernel=auto` at tiny size, and what is made of its figures."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ml.bench import bare_step, kernel_step, step, step_candidates
from dist_ml.bench.bare_step import ALONE, BARE, FUSED
from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.kernel_step import OURS_ON_TORCH, PRODUCTS, TORCH_PRODUCTS
from dist_ml.bench.step_candidates import OURS
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import TrainConfig
from dist_ml.kernels.tuner import FALLBACK, Shape, Tuner
from dist_ml.nn.linear import TunedLinear
from dist_ml.train.build import build_mesh, build_trainer
from tests.unit.bench_worlds import GivenWorlds, alone, bench_config

WIDTHS = (6, 8, 8, 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is tuned, and no process is started; rates are the shape's rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Tuner, "tune", lambda *_: None)
    monkeypatch.setattr(kernel_step.peak, "flops_per_second", lambda: 1e10)
    monkeypatch.setattr(kernel_step, "rates", lambda shape, _: {"torch": float(shape.m)})
    monkeypatch.setattr(step_candidates, "alone", lambda *_: lambda: 1e-3)


def config(*overrides: str) -> step.StepBench:
    wanted: step.StepBench = bench_config("step", *overrides)
    return wanted


def tiny(kernel: str, batch_size: int = 4) -> TrainConfig:
    train = with_widths(config().train, WIDTHS, batch_size)
    return dataclasses.replace(train, kernel=kernel)


@pytest.mark.parametrize("kernel", ["numpy", "auto"])
def test_a_step_on_tuned_kernels_is_measured_beside_all_others(kernel: str) -> None:
    found = alone(kernel_step.measure, {"train": to_arguments(tiny(kernel)), "rounds": 2})
    names = {OURS, OURS_ON_TORCH, BARE, FUSED, ALONE, PRODUCTS, TORCH_PRODUCTS}
    assert set(found["seconds"]) == names
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    assert 0 <= found["loss"] < 1e-4  # the same network on both kernels
    # forward, dX but for the first layer, dW: 2 m n k each, whatever their order
    weights = [inputs * outputs for inputs, outputs in itertools.pairwise(WIDTHS)]
    assert found["flops"] == 2 * 4 * (3 * sum(weights) - weights[0])
    assert found["fastest"] == 1e9 * max(WIDTHS)  # dW has a row an output
    assert found["peak"] >= 1e10
    json.dumps(found)


def test_the_losses_of_another_kernel_are_seen_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that rounds badly turns the check red."""
    products = kernel_step.kernels.KERNELS["numpy"]

    def rough(c: Any, a: Any, b: Any, alpha: float, beta: float) -> None:
        products(c, a, b, 1.01 * alpha, beta)

    monkeypatch.setitem(kernel_step.kernels.KERNELS, "numpy", rough)
    found = alone(kernel_step.measure, {"train": to_arguments(tiny("numpy")), "rounds": 1})
    checks = kernel_step.step_checks(32, found["seconds"], found["loss"])
    assert "relative difference of losses at batch 32" in [
        check.name for check in checks if not check.passed
    ]


def figures(ours: float, fused: float, fastest: float = 2e9) -> dict[str, Any]:
    seconds = {OURS: ours, OURS_ON_TORCH: 1.5 * ours, BARE: 2 * fused, FUSED: fused}
    seconds |= {ALONE: fused, PRODUCTS: ours / 2, TORCH_PRODUCTS: ours}
    times = {name: [value] * 3 for name, value in seconds.items()}
    return {"seconds": times, "loss": 1e-7, "flops": 1e9, "fastest": fastest, "peak": 4e9}


def test_each_batch_size_is_a_world_of_its_own_on_one_rank() -> None:
    worlds = GivenWorlds({"kernel step": figures(ours=1.0, fused=2.0)})
    result = step.run(config("kernel=auto", "batches=[32,512]", "rounds=3"), worlds)
    assert [(part, ranks) for part, ranks, _ in worlds.arguments] == [("kernel step", 1)] * 2
    trains = [from_arguments(each["train"]) for _, _, each in worlds.arguments]
    assert [train.batch_size for train in trains] == [32, 512]
    assert {(train.kernel, train.optimizer.lr) for train in trains} == {
        ("auto", kernel_step.LEARNING_RATE)
    }
    assert len(result.checks) == 6
    (row,) = [
        record
        for record in result.records
        if record["batch"] == 32 and record.get("candidate") == FUSED
    ]
    assert row["ms"] == 2000.0
    assert row["ours is times faster"] == 2.0
    told = next(record for record in result.records if "products ms" in record)
    assert told["products ms"] == 500.0
    assert told["other ms"] == 500.0
    # 1 GFLOP at 2 GFLOP/s takes 500 ms, with 500 ms of other work: half of the bare step's 2 s
    assert told["ceiling at fastest product"] == pytest.approx(2.0)
    assert told["ceiling at peak"] == pytest.approx(2000 / 750)


def test_a_peak_that_is_not_known_gives_no_ceiling() -> None:
    found = {**figures(ours=1.0, fused=2.0), "peak": None}
    result = step.run(config("kernel=auto", "batches=[32]"), GivenWorlds({"kernel step": found}))
    told = next(record for record in result.records if "products ms" in record)
    assert "ceiling at peak" not in told
    assert "ceiling at fastest product" in told


@pytest.mark.parametrize(
    ("ours", "fused", "passed"),
    [(1.0, 2.0, True), (1.0, 1.0, False), (1.0, math.nan, False)],
    ids=["good", "no gain", "not measured"],
)
def test_a_step_that_gains_nothing_fails(ours: float, fused: float, passed: bool) -> None:
    worlds = GivenWorlds({"kernel step": figures(ours, fused)})
    assert step.run(config("kernel=auto", "batches=[128]"), worlds).passed is passed


@pytest.mark.parametrize(
    ("seconds", "value", "passed"),
    [
        pytest.param({BARE: [1.2] * 3, FUSED: [1.0] * 3}, 1.0, True, id="as fast as the best"),
        pytest.param({BARE: [0.5] * 3, FUSED: [1.0] * 3}, 2.0, False, id="the bare one is best"),
        pytest.param({BARE: [1.2] * 3, FUSED: [0.9] * 3}, 1 / 0.9, False, id="fused is faster"),
    ],
)
def test_a_step_is_held_against_the_best_bare_one(
    seconds: dict[str, list[float]], value: float, passed: bool
) -> None:
    found = {OURS: [1.0] * 3, **seconds}
    result = step.run(config(), GivenWorlds({"step": found}))
    (check,) = result.checks
    assert check.value == pytest.approx(value)
    assert check.passed is passed
    assert {record["step"] for record in result.records} == set(found)


# --- what is compared


def test_samples_on_disk_are_those_of_the_configuration(tmp_path: Path) -> None:
    train = on_arrays(tiny(FALLBACK), 12, str(tmp_path))
    assert train.data.name == "arrays"
    trainer = trainer_of(train)
    split = trainer.dataset.train
    assert (split.num_samples, split.num_features, split.num_outputs) == (12, 6, 3)


def trainer_of(train: TrainConfig) -> Any:
    comm = Communicator(Loopback())
    return build_trainer(train, build_mesh(train, comm))


def test_our_steps_go_on_through_the_epoch(tmp_path: Path) -> None:
    trainer = trainer_of(on_arrays(tiny(FALLBACK), 12, str(tmp_path)))
    one = step_candidates.our_steps(trainer, 2)
    assert one() > 0
    assert one() > 0
    assert trainer.num_steps == 4  # three a pass


def test_layers_of_the_tuned_model_are_those_that_are_measured(tmp_path: Path) -> None:
    trainer = trainer_of(on_arrays(tiny("numpy"), 12, str(tmp_path)))
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, TunedLinear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(6, 8), (8, 8), (8, 3)]
    assert {each.products(4).forward for each in layers} == {"numpy"}


@pytest.mark.parametrize("fused", [False, True])
def test_the_bare_loop_trains(fused: bool) -> None:
    torch.manual_seed(3)
    bare = bare_step.BareStep((4, 8, 2), 4, 0.3, 0.0, 0.0, fused)
    x = torch.rand(16, 4)
    losses: list[float] = []
    cross_entropy = torch.nn.CrossEntropyLoss.forward

    def noting(self: Any, outputs: Any, targets: Any) -> Any:
        loss = cross_entropy(self, outputs, targets)
        losses.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.CrossEntropyLoss, "forward", noting)
        seconds = bare_step.steps_of(bare, x, (x[:, 0] > 0.5).long(), 200)()
    assert seconds > 0
    assert len(losses) == 200
    assert sum(losses[-40:]) < 0.8 * sum(losses[:40])


def test_a_process_of_its_own_is_given_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    ran: list[tuple[Sequence[str], dict[str, str]]] = []

    class Done:
        stdout = "0.25\n"

    def run(argv: Sequence[str], env: dict[str, str], **_: Any) -> Done:
        ran.append((argv, env))
        return Done()

    monkeypatch.setattr(bare_step.subprocess, "run", run)
    bare = bare_step.BareStep((4, 8, 2), 4, 0.1, 0.9, 0.0, fused=True)
    assert bare_step.alone(bare, 16, 2)() == 0.25
    ((argv, environment),) = ran
    assert argv[1:3] == ["-m", "dist_ml.bench.bare_step"]
    told = json.loads(argv[3])
    assert (told["num_samples"], told["steps"]) == (16, 2)
    assert told["step"] == {**dataclasses.asdict(bare), "widths": [4, 8, 2]}
    assert "OMP_NUM_THREADS" not in environment


def test_a_step_and_its_products_agree_in_their_sizes() -> None:
    """The three products of a layer have the same number of operations."""
    train = tiny("numpy", batch_size=5)
    layer = first_layer(train)
    shapes: Sequence[Shape] = layer.shapes(5)
    assert {shape.m * shape.n * shape.k for shape in shapes} == {5 * 6 * 8}


def first_layer(train: TrainConfig) -> TunedLinear:
    modules = trainer_of(train).model.modules()
    return next(layer for layer in modules if isinstance(layer, TunedLinear))
