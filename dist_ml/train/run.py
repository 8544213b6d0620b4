"""A whole run: train, report, evaluate, and leave the run folder behind."""

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DataError, DistMLError
from dist_ml.measure.environment import environment
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.timeline_file import MeasuredStep
from dist_ml.train import run_folder
from dist_ml.train.axis_words import planned_words
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.display import Reporter, make_reporter
from dist_ml.train.evaluator import Evaluation
from dist_ml.train.interval import Interval
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.step import Step
from dist_ml.train.text_sample import write_text
from dist_ml.train.trackers import Trackers, open_trackers
from dist_ml.train.trainer import Trainer
from dist_ml.train.weights import save_weights

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
        self._world = trainer.mesh.world
        self._folder = folder
        self._trackers = trackers
        self._reporter = reporter
        self._interval = Interval(trainer)
        self._phase_seconds: dict[str, float] = {}
        self._train_seconds = 0.0
        self._words: Counter[str] = Counter()  # sent in training, by axis
        self._num_samples = 0
        self._num_skipped = 0
        self._last_loss = float("nan")

    def train(self) -> dict[str, Any]:
        """All epochs; the summary."""
        log.info("%d parameters on %d ranks", self._trainer.model.num_parameters, self._world.size)
        evaluation: dict[str, Any] = {}
        try:
            for epoch in range(self._config.epochs):
                self._epoch(epoch)
                evaluation = self._evaluate(epoch) or evaluation
        except DistMLError as error:
            self._tell_failure(error, evaluation)
            raise
        self._save()
        found = {**self._summary(evaluation), **self._timeline(), **self._text_sample()}
        summary = {"status": "finished", **found}
        from_root(self._world, lambda: self._folder.write_summary(summary))
        self._reporter.finish(summary)
        return summary

    def _epoch(self, epoch: int) -> None:
        self._interval.begin()
        for step in self._trainer.epoch(epoch, goes_on=not self._is_evaluated(epoch)):
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

    def _is_evaluated(self, epoch: int) -> bool:
        """After an epoch."""
        last = epoch + 1 == self._config.epochs
        return last or (epoch + 1) % self._config.evaluate_every == 0

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self._is_evaluated(epoch):
            values = evaluation_values(self._trainer.evaluate(self._trainer.dataset.test))
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
        self._words.update(self._interval.words_by_axis())
        self._num_samples += self._interval.num_samples
        for name, spent in phases.items():
            self._phase_seconds[name] = self._phase_seconds.get(name, 0.0) + spent

    def _summary(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        seconds = max(self._train_seconds, 1e-9)
        total = self._world.traffic.total()
        steps = max(1, self._trainer.num_steps)
        return {
            "name": self._config.name,
            "folder": str(self._folder.path),
            "ranks": self._world.size,
            "num_parameters": self._trainer.model.num_parameters,
            "num_steps": self._trainer.num_steps,
            "num_skipped": self._num_skipped,
            "train_loss": self._last_loss,
            **evaluation,
            "seconds": self._train_seconds,
            "samples_per_second": self._num_samples / seconds,
            "communication_share": self._phase_seconds.get("exchange", 0.0) / seconds,
            "seconds_by_phase": self._phase_seconds,
            "words_sent": total.words_sent,
            "words_by_axis": {axis: words / steps for axis, words in self._words.items()},
            "planned_words_by_axis": planned_words(self._config, self._trainer),
            "messages": total.messages,
            "bytes_sent": total.bytes_sent,
            "environment": environment(),
        }

    def _tell_failure(self, error: DistMLError, evaluation: Mapping[str, Any]) -> None:
        """Rank 0's summary of a run that ends early; where even that can't be written, the error
        alone says it.
        """
        summary = {"status": "failed", "error": str(error), **self._summary(evaluation)}
        if self._world.rank == 0:
            with contextlib.suppress(DataError):
                self._folder.write_summary(summary)

    def _save(self) -> None:
        """The trained weights, which rank 0 writes."""
        state = self._trainer.weights() or {}
        from_root(self._world, lambda: save_weights(state, self._folder.model))

    def _text_sample(self) -> dict[str, Any]:
        """What a model of text writes, into a file of its own, too."""
        if self._trainer.dataset.train.task != "next_token":
            return {}
        text = write_text(self._trainer, self._config.seed)
        from_root(self._world, lambda: self._folder.write(self._folder.sample, text + "\n"))
        return {"text_sample": text}

    def _timeline(self) -> dict[str, Any]:
        """A pipeline's last step, which rank 0 writes; its bubble, measured and planned. Of steps
        that run into each other one alone tells little.
        """
        pipeline = self._trainer.pipeline
        if pipeline is None:
            return {}
        if pipeline.schedule.is_asynchronous:
            return {"schedule": pipeline.schedule.name}
        step = MeasuredStep.of(pipeline.schedule, self._trainer.timed_actions())
        from_root(self._world, lambda: timeline_file.write(self._folder.timeline, step))
        return {
            "schedule": pipeline.schedule.name,
            "bubble": step.timeline.bubble,
            "planned_bubble": step.planned().bubble,
        }


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    values = {
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy,
        "test_bits_per_byte": evaluation.bits_per_byte,
    }
    return {name: value for name, value in values.items() if value is not None}
