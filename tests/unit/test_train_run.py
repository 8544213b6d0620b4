"""A whole run in one process: what it leaves in its folder, tells, evaluates again and goes on
from, on other numbers of ranks too.
"""

import errno
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.traffic import Traffic, Words
from dist_ml.config.convert import to_mapping
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DataError, DistMLError, NonFiniteError
from dist_ml.measure.timer import Phases
from dist_ml.models import MLP, choose_objective
from dist_ml.train import logs, metrics, run, run_folder
from dist_ml.train.build import build_mesh
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.evaluator import Evaluation, Evaluator
from dist_ml.train.interval import Interval
from dist_ml.train.step import Step
from dist_ml.train.summary import evaluation_values
from dist_ml.train.trainer import Trainer
from dist_ml.train.weights import load_weights, save_weights
from tests.unit.train_worlds import CLASSES, FEATURES, Points, changed

ALONE = Communicator(Loopback())


def step(number: int, loss: float, correct: float, num_samples: int, skipped: bool = False) -> Step:
    return Step(number, number // 3, num_samples, loss, (correct,), skipped)


class TestInterval:
    """What a line of metrics is made of, from a trainer that is none."""

    def trainer(self, traffic: Traffic, names: tuple[str, ...] = ("correct",)) -> Any:
        return SimpleNamespace(
            mesh=SimpleNamespace(world=SimpleNamespace(traffic=traffic)),
            objective=SimpleNamespace(metric_names=names, items_per_sample=1),
            phases=Phases(),
            learning_rate=0.125,
            diagnostics=lambda: {"period": 4.0},
        )

    def test_samples_weigh_the_mean_loss_and_the_accuracy(self) -> None:
        interval = Interval(self.trainer(Traffic()))
        for told in (step(0, 2.0, 10, 30), step(1, 1.0, 6, 10)):
            interval.add(told)
        values = interval.values(step(1, 1.0, 6, 10))
        assert values["mean_loss"] == (2.0 * 30 + 1.0 * 10) / 40
        assert values["train_accuracy"] == 16 / 40
        assert (values["loss"], values["epoch"], values["learning_rate"]) == (1.0, 0, 0.125)
        assert values["period"] == 4.0
        assert interval.num_samples == 40

    def test_a_share_of_tokens_is_of_all_tokens(self) -> None:
        trainer = self.trainer(Traffic())
        trainer.objective.items_per_sample = 8
        interval = Interval(trainer)
        interval.add(step(0, 2.0, 100, 25))
        assert interval.values(step(0, 2.0, 100, 25))["train_accuracy"] == 0.5

    def test_nothing_from_before_its_begin_is_in_it(self) -> None:
        traffic = Traffic(timing=True)
        traffic.count("data", "allreduce", Words(100, 100, 2), 4)
        interval = Interval(self.trainer(traffic))
        interval.add(step(0, 9.0, 1, 10))
        interval.begin()
        traffic.count("data", "allreduce", Words(30, 30, 2), 4)
        traffic.count("data", "allreduce", Words(30, 30, 2), 4)
        with traffic.timed("pipeline", "send"):
            traffic.count("pipeline", "send", Words(5, 0, 1), 8)
            time.sleep(0.001)
        interval.add(step(1, 1.0, 5, 10))
        values = interval.values(step(1, 1.0, 5, 10))
        assert (values["mean_loss"], values["train_accuracy"]) == (1.0, 0.5)
        assert values["traffic"]["data.allreduce"] == {"words": 60, "messages": 4, "bytes": 240}
        sent = values["traffic"]["pipeline.send"]
        assert sent.pop("seconds") > 0
        assert sent == {"words": 5, "messages": 1, "bytes": 40}

    def test_the_share_of_communication_is_that_of_the_exchange(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        trainer = self.trainer(Traffic())
        interval = Interval(trainer)
        for phase, seconds in (("forward", 3.0), ("exchange", 1.0)):
            with trainer.phases(phase):
                now[0] += seconds
        interval.add(step(0, 1.0, 1, 20))
        values = interval.values(step(0, 1.0, 1, 20))
        assert values["communication_share"] == 0.25
        assert values["samples_per_second"] == 5.0
        assert values["seconds"] == {"forward": 3.0, "exchange": 1.0}
        assert interval.end() == (4.0, {"forward": 3.0, "exchange": 1.0})
        assert interval.end() == (4.0, {}), "phases are taken once"

    def test_where_nothing_is_classified_there_is_no_accuracy(self) -> None:
        interval = Interval(self.trainer(Traffic(), ()))
        interval.add(Step(0, 0, 10, 1.0, (), False))
        assert "train_accuracy" not in interval.values(Step(0, 0, 10, 1.0, (), False))


class TestEvaluator:
    @pytest.mark.parametrize("ranks", [1, 3, 5])
    @pytest.mark.parametrize("num", [4, 17])
    def test_means_over_all_samples_each_counted_once(self, ranks: int, num: int) -> None:
        """Also where a rank has no sample, and in pieces of any size."""
        points = Points(num)

        def body(comm: Communicator) -> list[Evaluation]:
            model = MLP((FEATURES, 7, CLASSES), dropout=0.5, dtype=torch.float64)
            objective = choose_objective(ModelConfig(), "classification")
            evaluator = Evaluator(model, objective, comm, autocast=False)
            model.context.set(0, np.arange(3))
            found = [evaluator.evaluate(points, size) for size in (1, 3, 1000)]
            assert model.training
            return found

        model = MLP((FEATURES, 7, CLASSES), dtype=torch.float64)
        outputs = model(points.inputs)
        loss = torch.nn.functional.cross_entropy(outputs, points.targets).item()
        accuracy = (outputs.argmax(1) == points.targets).double().mean().item()
        for found in run_ranks(ranks, body):
            for evaluation in found:
                assert evaluation.num_samples == num
                assert evaluation.loss == pytest.approx(loss, rel=1e-12)
                assert evaluation.accuracy == pytest.approx(accuracy, rel=1e-12)

    def test_values_have_a_loss_alone(self) -> None:
        points = Points(9, "regression")
        model = MLP((FEATURES, CLASSES), dtype=torch.float64)
        objective = choose_objective(ModelConfig(), "regression")
        found = Evaluator(model, objective, ALONE, autocast=False).evaluate(points)
        mean = ((model(points.inputs) - points.targets) ** 2).mean().item()
        assert (found.loss, found.accuracy) == (pytest.approx(mean), None)
        assert evaluation_values(found) == {"test_loss": found.loss}


class TestWeights:
    def test_they_come_back_as_they_were_and_plain_torch_reads_them(self, tmp_path: Path) -> None:
        saved, loaded = (MLP((4, 3, 2), seed=seed) for seed in (1, 2))
        save_weights(saved.state_dict(), tmp_path / "model.safetensors")
        load_weights(loaded, tmp_path / "model.safetensors")
        for one, other in zip(saved.parameters(), loaded.parameters(), strict=True):
            assert torch.equal(one, other)
        plain = torch.nn.Linear(4, 3)
        plain.weight.data = load_file(tmp_path / "model.safetensors")["layers.0.weight"]
        assert torch.equal(plain.weight, saved.layers[0].weight)
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]

    def test_a_weight_with_two_names_is_kept_under_both(self, tmp_path: Path) -> None:
        first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        second.weight = first.weight
        model = torch.nn.Sequential(first, second)
        save_weights(model.state_dict(), tmp_path / "x")
        before = first.weight.detach().clone()
        first.weight.detach().zero_()
        load_weights(model, tmp_path / "x")
        assert torch.equal(second.weight, before)
        assert len(load_file(tmp_path / "x")) == 4

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"layers.0.weight": (3, 5), "layers.0.bias": (3,)}, "does not hold the weights"),
            ({"layers.0.weight": (3, 4)}, "does not hold the weights"),
            (
                {"layers.0.weight": (3, 4), "layers.0.bias": (3,), "layers.1.bias": (3,)},
                "does not hold the weights",
            ),
        ],
        ids=["another shape", "one too few", "one too many"],
    )
    def test_another_models_are_refused(
        self, weights: Mapping[str, tuple[int, ...]], message: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "model.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in weights.items()}, file)
        with pytest.raises(DataError, match=message):
            load_weights(MLP((4, 3)), file)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_named_by_its_layer(self, bad: float, tmp_path: Path) -> None:
        model = MLP((4, 3, 2))
        model.layers[1].bias.data[1] = bad  # type: ignore[union-attr]
        save_weights(model.state_dict(), tmp_path / "x")
        with pytest.raises(DataError, match=r"layers\.1\.bias holds NaN or infinity"):
            load_weights(MLP((4, 3, 2)), tmp_path / "x")

    def test_no_file_and_a_cut_file(self, tmp_path: Path) -> None:
        file = tmp_path / "model.safetensors"
        with pytest.raises(DataError, match="the run has not finished"):
            load_weights(MLP((4, 3)), file)
        save_weights(MLP((4, 3)).state_dict(), file)
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(DataError, match="was it changed"):
            load_weights(MLP((4, 3)), file)

    def test_a_folder_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"can't be saved in .*gone"):
            save_weights(MLP((4, 3)).state_dict(), tmp_path / "gone" / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    yield tmp_path / "run"  # type: ignore[misc]
    logs.stop()


def train(folder: Path, **changes: Any) -> dict[str, Any]:
    config = changed(folder=str(folder), **changes)
    return run.train_run(config, Communicator(Loopback()))


def test_a_run_leaves_its_folder_and_another_number_of_ranks_evaluates_it(folder: Path) -> None:
    summary = train(folder, epochs=3, evaluate_every=2, log_every=2)
    logs.stop()
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (summary["status"], summary["num_steps"], summary["num_skipped"]) == ("finished", 9, 0)
    assert summary["num_parameters"] == 5 * 6 + 6 + 6 * 3 + 3
    assert run_folder.load_config(folder) == json.loads(
        json.dumps(to_mapping(changed(folder=str(folder), epochs=3, evaluate_every=2, log_every=2)))
    )
    lines = metrics.read(folder / "metrics.jsonl")
    logged = [line for line in lines if "mean_loss" in line]
    evaluated = [line for line in lines if "test_loss" in line]
    assert [line["step"] for line in logged] == [0, 2, 4, 6, 8]
    assert [(line["step"], line["epoch"]) for line in evaluated] == [(6, 2), (9, 3)]
    assert evaluated[-1]["test_loss"] == summary["test_loss"]
    spent = sum(summary["seconds_by_phase"].values())
    assert 0 < spent <= summary["seconds"]
    for ranks in (1, 3):
        for found in run_ranks(ranks, lambda world: evaluate_run(folder, world)):
            assert found["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-12)
            assert found["test_accuracy"] == summary["test_accuracy"]


def test_what_cannot_be_evaluated_is_told_on_all_ranks(folder: Path) -> None:
    train(folder, epochs=1)
    logs.stop()
    (folder / "checkpoints" / "model.safetensors").unlink()

    def body(world: Communicator) -> tuple[str, bool]:
        with pytest.raises(DataError) as caught:
            evaluate_run(folder, world)
        return str(caught.value), caught.value.agreed

    found = run_ranks(3, body)
    assert found == [found[0]] * 3
    assert "the run has not finished" in found[0][0]
    assert found[0][1]


class Blowing:
    """Makes the inputs of a range of steps infinite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.count = 0
        original = run.build_trainer

        def build(*of: Any) -> Trainer:
            trainer = original(*of)
            split = trainer.dataset.train
            batch = split.batch

            def blown(ids: Any) -> Any:
                made = batch(ids)
                self.count += 1
                return (
                    made._replace(inputs=made.inputs * math.inf)
                    if first <= self.count <= last
                    else made
                )

            object.__setattr__(split, "batch", blown)
            return trainer

        monkeypatch.setattr(run, "build_trainer", build)


def test_skipped_steps_are_counted_logged_and_leave_the_weights_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Blowing(monkeypatch, 2, 3)
    summary = train(folder, epochs=2, nonfinite="skip")
    assert (summary["num_steps"], summary["num_skipped"]) == (6, 2)
    assert math.isfinite(summary["test_loss"])
    logs.stop()
    log = (folder / "log" / "rank-0000.log").read_text()
    assert [f"step {number} skipped" in log for number in range(4)] == [False, True, True, False]
    losses = [line["loss"] for line in metrics.read(folder / "metrics.jsonl") if "loss" in line]
    assert [loss is None for loss in losses] == [False, True, True, False, False, False]
    load_weights(MLP((FEATURES, 6, CLASSES), "tanh", dtype=torch.float64),
                 folder / "checkpoints" / "model.safetensors")  # fmt: skip


def test_a_run_that_fails_says_so_in_its_summary_and_saves_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Blowing(monkeypatch, 11, 11)
    with pytest.raises(NonFiniteError, match="epoch 3, step 10"):
        train(folder, epochs=5, evaluate_every=2)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "epoch 3, step 10" in summary["error"]
    assert summary["num_steps"] == 10
    assert summary["test_loss"] > 0, "what was evaluated before the failure is kept"
    assert not list((folder / "checkpoints").iterdir())


def test_a_failure_is_told_even_where_its_summary_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Blowing(monkeypatch, 1, 1)
    write_whole = run_folder.write_whole
    monkeypatch.setattr(
        run_folder,
        "write_whole",
        lambda file, text: full() if file.name == "summary.json" else write_whole(file, text),
    )
    with pytest.raises(NonFiniteError):
        train(folder)
    assert not (folder / "summary.json").exists()


def test_mistakes_that_building_finds_are_agreed(tmp_path: Path) -> None:
    config: TrainConfig = changed(ranks=4)

    def body(world: Communicator) -> tuple[str, bool]:
        with pytest.raises(DistMLError) as caught:
            build_mesh(config, world)
        return str(caught.value), caught.value.agreed

    found = run_ranks(3, body)
    assert found == [(found[0][0], True)] * 3
    assert found[0][0].startswith("ranks=4, but 3 ranks were started; start 4 (dist-ml launch -n 4")
