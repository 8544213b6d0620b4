"""A whole run: train, report, evaluate, and leave the run folder behind."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.traffic import Tally
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DataError, DistMLError
from dist_ml.measure.environment import environment
from dist_ml.train import run_folder
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.progress import Reporter, make_reporter
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.trackers import Trackers, open_trackers
from dist_ml.train.trainer import Evaluation, Step, Trainer

log = logging.getLogger(__name__)


def train_run(config: TrainConfig, world: Communicator) -> dict[str, Any]:
    """Train as configured on all ranks of `world`; the summary, the same on all of them.
    Collective.
    """
    mesh = build_mesh(config, world)
    trainer = build_trainer(config, mesh)
    mapping = to_mapping(config)
    folder = run_folder.create(config.folder, mapping, mesh.world)
    trackers = open_trackers(config.tracker, folder, mesh.world)
    num_steps = config.epochs * trainer.sampler.steps_per_epoch
    reporter = make_reporter(mesh.world.rank, num_steps, config.epochs)
    run = Run(config, trainer, folder, trackers, reporter)
    try:
        trackers.start(mapping)
        return run.train()
    finally:
        reporter.close()
        trackers.close()


def evaluate_run(path: str | Path, world: Communicator) -> dict[str, Any]:
    """Mean loss and accuracy of a run's saved weights over its test samples, on any number of
    ranks. Collective.
    """
    mapping = from_root(world, lambda: run_folder.load_config(path))
    # However many ranks trained, those of today evaluate, all as replicas.
    mapping = {**mapping, "ranks": None, "mesh": {"data": None, "pipeline": 1, "operator": 1}}
    config = from_mapping(TrainConfig, mapping)
    trainer = build_trainer(config, build_mesh(config, world))
    with raise_on_all_ranks(world):
        load_weights(trainer, RunFolder(Path(path)).model)
    return _evaluation_values(trainer.evaluate(trainer.dataset.test))


def load_weights(trainer: Trainer, file: Path) -> None:
    """Fill the model with saved weights; `DataError` where the file is missing or holds another
    model's.
    """
    try:
        trainer.model.load_state_dict(safetensors.torch.load_file(file))
    except FileNotFoundError:
        raise DataError(
            f"{file} does not exist: the run has not finished; train it to its end first"
        ) from None
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{file} does not hold the weights of this run's model ({reason}); was it changed?"
        ) from error


class Run:
    """The passes over the data, with what is measured, logged and saved along the way."""

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        folder: RunFolder,
        trackers: Trackers,
        reporter: Reporter,
    ) -> None:
        self._config = config
        self._trainer = trainer
        self._folder = folder
        self._trackers = trackers
        self._reporter = reporter
        self._interval = Interval(trainer)
        self._phase_seconds: dict[str, float] = {}
        self._train_seconds = 0.0
        self._num_samples = 0
        self._num_skipped = 0
        self._last_loss = float("nan")

    def train(self) -> dict[str, Any]:
        """All epochs; the summary."""
        log.info("%d parameters on %d ranks", self._num_parameters, self._trainer.comm.size)
        evaluation: dict[str, Any] = {}
        try:
            for epoch in range(self._config.epochs):
                self._epoch(epoch)
                evaluation = self._evaluate(epoch) or evaluation
        except DistMLError as error:
            self._write({"status": "failed", "error": str(error), **self._summary(evaluation)})
            raise
        self._save()
        summary = {"status": "finished", **self._summary(evaluation)}
        self._write(summary)
        self._reporter.finish(summary)
        return summary

    def _epoch(self, epoch: int) -> None:
        self._interval.begin()
        for step in self._trainer.epoch(epoch):
            self._interval.add(step)
            self._last_loss = step.loss
            if step.skipped:
                self._num_skipped += 1
                log.warning(
                    "step %d skipped: the loss is %s, or its gradient is not finite",
                    step.number,
                    step.loss,
                )
            logged = step.number % self._config.log_every == 0
            self._reporter.step(step.number + 1, self._log(step) if logged else {})
        self._end_interval()

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        last = epoch + 1 == self._config.epochs
        values: dict[str, Any] = {}
        if last or (epoch + 1) % self._config.evaluate_every == 0:
            values = _evaluation_values(self._trainer.evaluate(self._trainer.dataset.test))
            self._trackers.log(self._trainer.num_steps, {"epoch": epoch + 1, **values})
            log.info("epoch %d: %s", epoch + 1, values)
        self._reporter.epoch(epoch + 1, values)
        return values

    def _log(self, step: Step) -> dict[str, Any]:
        """Write a line of metrics for the steps since the last one; what the progress bar shows of
        it.
        """
        values = self._interval.values(step)
        self._end_interval()
        self._interval.begin()
        self._trackers.log(step.number, values)
        return {
            key: values[key]
            for key in ("epoch", "loss", "samples_per_second", "communication_share")
        }

    def _end_interval(self) -> None:
        """Add the interval's seconds and samples to the run's."""
        seconds, phases = self._interval.end()
        self._train_seconds += seconds
        self._num_samples += self._interval.num_samples
        for name, spent in phases.items():
            self._phase_seconds[name] = self._phase_seconds.get(name, 0.0) + spent

    @property
    def _num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._trainer.model.parameters())

    def _summary(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        seconds = max(self._train_seconds, 1e-9)
        total = self._trainer.comm.traffic.total()
        return {
            "name": self._config.name,
            "folder": str(self._folder.path),
            "ranks": self._trainer.comm.size,
            "num_parameters": self._num_parameters,
            "num_steps": self._trainer.num_steps,
            "num_skipped": self._num_skipped,
            "train_loss": self._last_loss,
            **evaluation,
            "seconds": self._train_seconds,
            "samples_per_second": self._num_samples / seconds,
            "communication_share": self._phase_seconds.get("exchange", 0.0) / seconds,
            "seconds_by_phase": self._phase_seconds,
            "words_sent": total.words_sent,
            "messages": total.messages,
            "bytes_sent": total.bytes_sent,
            "environment": environment(),
        }

    def _write(self, summary: Mapping[str, Any]) -> None:
        if self._trainer.comm.rank == 0:
            self._folder.write_summary(summary)

    def _save(self) -> None:
        """The trained weights, a plain state dict; the same on all ranks, so rank 0 writes it."""

        def write() -> None:
            unfinished = self._folder.model.with_suffix(".part")
            try:
                safetensors.torch.save_file(self._trainer.model.state_dict(), unfinished)
                unfinished.replace(self._folder.model)
            except (OSError, safetensors.SafetensorError) as error:
                raise DataError(
                    f"the weights can't be saved in {self._folder.checkpoints}: {error}; make "
                    "room there"
                ) from error

        from_root(self._trainer.comm, write)


class Interval:
    """What happened since the last logged step: samples, seconds, phases, traffic."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.num_samples = 0
        self._num_correct = 0
        self._loss_sum = 0.0
        self._start = time.perf_counter()
        self._traffic = trainer.comm.traffic.snapshot()

    def begin(self) -> None:
        self.num_samples = self._num_correct = 0
        self._loss_sum = 0.0
        self._start = time.perf_counter()
        self._traffic = self._trainer.comm.traffic.snapshot()

    def add(self, step: Step) -> None:
        self.num_samples += step.num_samples
        self._num_correct += step.correct
        self._loss_sum += step.loss * step.num_samples

    def end(self) -> tuple[float, dict[str, float]]:
        """Seconds since `begin`, and their phases."""
        return time.perf_counter() - self._start, self._trainer.phases.take()

    def values(self, step: Step) -> dict[str, Any]:
        """One line of metrics.jsonl, without the step's number."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        phases = dict(self._trainer.phases.seconds)
        traffic = self._trainer.comm.traffic.since(self._traffic)
        classified = self._trainer.dataset.train.task == "classification"
        return {
            "epoch": step.epoch,
            "loss": step.loss,
            "mean_loss": self._loss_sum / self.num_samples,
            **({"train_accuracy": self._num_correct / self.num_samples} if classified else {}),
            "learning_rate": self._trainer.learning_rate,
            "samples_per_second": self.num_samples / seconds,
            "communication_share": phases.get("exchange", 0.0) / seconds,
            "seconds": phases,
            **self._trainer.diagnostics(),
            "traffic": {
                f"{axis}.{collective}": _moved(tally)
                for (axis, collective), tally in traffic.items()
            },
        }


def _moved(tally: Tally) -> dict[str, float]:
    moved: dict[str, float] = {
        "words": tally.words_sent,
        "messages": tally.messages,
        "bytes": tally.bytes_sent,
    }
    return {**moved, "seconds": tally.seconds} if tally.seconds else moved


def _evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    values: dict[str, Any] = {"test_loss": evaluation.loss}
    return (
        values if evaluation.accuracy is None else {**values, "test_accuracy": evaluation.accuracy}
    )
