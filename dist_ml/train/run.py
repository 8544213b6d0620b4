"""A whole run: train, report, evaluate, and leave the run folder behind."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np

from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.host_links import HostLinks
from dist_ml.comm.peer_monitor import Peer
from dist_ml.comm.survivors import Survivors
from dist_ml.config.convert import to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DataError, DistMLError, PeerLostError
from dist_ml.flight import record_file
from dist_ml.flight.on_signal import DUMP
from dist_ml.launch.lead import lead_seconds, seconds_to_stop
from dist_ml.measure.memory import peak_bytes
from dist_ml.train import metrics, open_folder
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.checkpoints import Checkpoints, go_on
from dist_ml.train.display import make_reporter
from dist_ml.train.evaluator import no_border
from dist_ml.train.interval import Interval
from dist_ml.train.own import Own
from dist_ml.train.progress import Progress
from dist_ml.train.recovery import train_on
from dist_ml.train.results import leave_results
from dist_ml.train.resume import Earlier, begin, find, require_epochs_left
from dist_ml.train.step import Step
from dist_ml.train.step_trace import StepTrace
from dist_ml.train.stop_signals import StopSignals
from dist_ml.train.summary import Predict, evaluation_values, figures, predicted
from dist_ml.train.trackers import open_trackers
from dist_ml.train.trainer import Trainer
from dist_ml.train.watchdog import Watchdog

log = logging.getLogger(__name__)


def train_run(
    config: TrainConfig,
    world: Communicator,
    own: Own = Own(),  # noqa: B008 - immutable
    signals: StopSignals | None = None,
    predict: Predict | None = None,
) -> dict[str, Any]:
    """Train as configured on all ranks of `world`, or go on with a run that was begun; the summary,
    the same on all of them. Its `status` is `stopped` where one of `signals` ended the run. `own`:
    in place of what the configuration names; `predict`: for the summary. Collective.
    """
    survivors = Survivors(world) if config.fault.recover == "shrink" else None
    signals = signals or StopSignals()
    signals.begin(config.saves, world.size == 1, from_root(world, seconds_to_stop))
    mesh = build_mesh(config, world)
    with (
        HostLinks(world, config.fault.unreachable_seconds),
        open_folder.claimed_log(config.place, mesh.world) as claimed,
    ):
        earlier = find(config, mesh) if config.resume is not None else None
        if earlier is not None and earlier.summary is not None:
            make_reporter(mesh.world.rank, 0, 0).finish(earlier.summary)
            return earlier.summary
        agree = survivors.agree if survivors is not None else lambda: None
        trainer = build_trainer(config, mesh, signals.told, own, agree)
        run = Run(config, trainer, signals, predict=predict)
        if survivors is not None:
            return train_on(run, run.opened(earlier, claimed), survivors)
        with run.opened(earlier, claimed):
            return run.train()


class StopError(Exception):
    """Some rank was told to stop, between two batches of an evaluation."""


class Run:
    """The passes over the data, with what is measured, logged and saved along the way."""

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        signals: StopSignals,
        progress: Progress | None = None,
        predict: Predict | None = None,
    ) -> None:
        self._config, self._trainer, self._signals = config, trainer, signals
        self._predict = predict
        self._world = trainer.mesh.world
        self._interval, self._progress = Interval(trainer), progress or Progress()
        self._last_line: tuple[int, dict[str, Any]] | None = None  # of metrics
        self._watchdog = Watchdog(config.fault, self._world)

    @contextlib.contextmanager
    def opened(self, earlier: Earlier | None, claimed: TextIO | None) -> Iterator[None]:
        """The run's folder and what is written there and shown, within the block: new ones, or
        those of the `earlier` run, whose state and figures it takes. Collective.
        """
        config, trainer, world = self._config, self._trainer, self._world
        mapping = to_mapping(config)
        steps_per_epoch = trainer.sampler.steps_per_epoch
        checkpoint = None if earlier is None else earlier.checkpoint
        if checkpoint is not None:
            require_epochs_left(config, checkpoint, steps_per_epoch)
            go_on(trainer, checkpoint, mapping, self._progress, self._interval)
        if earlier is None or not earlier.begun:
            self._folder = open_folder.create(config.place, mapping, world)
        else:
            self._reopen(mapping, claimed)
        with self._writing(mapping):
            if earlier is not None:
                for words in begin(earlier, self._folder.path, trainer.num_steps, world):
                    self._tell(words)
            yield

    def followed_by(self, make: Callable[[TrainConfig, Trainer, StopSignals], Trainer]) -> "Run":
        """This run, and its figures, with the trainer that is made of its configuration and its
        own trainer's state.
        """
        trainer = make(self._config, self._trainer, self._signals)
        self._progress.end_interval(self._interval)
        run = Run(self._config, trainer, self._signals, self._progress, self._predict)
        run._interval.load_state_dict(self._interval.state_dict())
        run._last_line = self._last_line
        return run

    @contextlib.contextmanager
    def reopened(self) -> Iterator[None]:
        """As `opened`, of a run that follows another one of this process, whose rank 0 may have
        died before it wrote the last line. Collective.
        """
        mapping, line = to_mapping(self._config), self._last_line
        self._reopen(mapping, None)
        with self._writing(mapping):
            if line is not None and not from_root(
                self._world, lambda: metrics.holds(self._folder.metrics, line[0])
            ):
                self._trackers.log(*line)
            yield

    def tell_loss(self, lost: Peer, seconds: float) -> None:
        """A rank was lost in the step that comes, `seconds` ago; in the summary, too."""
        step, size = self._trainer.num_steps, self._world.size
        self._progress.recoveries.append({"rank": lost.rank, "step": step, "seconds": seconds})
        self._tell(
            f"rank {lost.rank} (process {lost.pid}) was lost in step {step}; {seconds:.2f} s later "
            f"{size} go on from there, with its samples; their numbers are 0 to {size - 1} now"
        )

    def _reopen(self, mapping: Mapping[str, Any], claimed: TextIO | None) -> None:
        """The folder of the run that goes on, without what comes after its last step."""
        self._folder = open_folder.reopen(self._config.place, mapping, self._world, claimed)
        from_root(self._world, lambda: metrics.cut(self._folder.metrics, self._trainer.num_steps))

    @contextlib.contextmanager
    def _writing(self, mapping: Mapping[str, Any]) -> Iterator[None]:
        """Within the block the run is saved, tracked and shown."""
        config, trainer, world = self._config, self._trainer, self._world
        self._signals.on(DUMP, lambda: record_file.write(world.recorder, DUMP.name))
        self._checkpoints = Checkpoints(
            config.checkpoint, trainer, self._folder.checkpoints, mapping
        )
        self._trace = (
            StepTrace(config.trace, trainer, self._folder.trace) if config.trace.enabled else None
        )
        self._trackers = open_trackers(config.tracker, self._folder, world, trainer.num_steps)
        num_steps = config.epochs * trainer.sampler.steps_per_epoch
        self._reporter = make_reporter(world.rank, num_steps, config.epochs, trainer.num_steps)
        try:
            self._trackers.start(mapping)
            with self._watchdog:
                yield
        finally:
            self._reporter.close()
            self._trackers.close()

    def train(self) -> dict[str, Any]:
        """All epochs that are left; the summary."""
        log.info("%d parameters on %d ranks", self._trainer.model.num_parameters, self._world.size)
        evaluation: dict[str, Any] = {}
        # The first may be over: then its evaluation is to be made.
        first = max(0, self._trainer.num_steps - 1) // self._trainer.sampler.steps_per_epoch
        try:
            for epoch in range(first, self._config.epochs):
                if self._epoch(epoch):
                    return self._stopped(evaluation)
                evaluation = self._evaluate(epoch) or evaluation
        except StopError:
            self._interval.restart()  # evaluations are no training
            return self._stopped(evaluation)
        except DistMLError as error:
            if not (isinstance(error, PeerLostError) and self._config.fault.recover == "shrink"):
                self._tell_failure(error, evaluation)
            raise
        if self._trace is not None:
            self._trace.close()
        with self._signals.saving():
            self._checkpoints.close()
            peak = peak_bytes()  # before rank 0 gathers the whole model
            left = leave_results(self._trainer, self._folder, self._config)
            summary = {
                "status": "finished",
                **self._summary(evaluation),
                "peak_bytes": peak,
                **left,
            }
            summary |= predicted(self._predict, self._config, self._trainer, summary)
            from_root(self._world, lambda: self._folder.write_summary(summary))
        self._signals.log_ignored()
        self._reporter.finish(summary)
        return summary

    def _epoch(self, epoch: int) -> bool:
        """The steps of an epoch that are left; was the run told to stop?"""
        start = self._trainer.num_steps - epoch * self._trainer.sampler.steps_per_epoch
        if start == 0:
            self._interval.begin()
        goes_on = not self._is_evaluated(epoch)
        self._begin_step(self._trainer.num_steps)
        for step in self._trainer.epoch(epoch, start, goes_on):
            self._watchdog.end()
            if self._trace is not None:
                self._trace.after_step(step.number)
            self._interval.add(step)
            self._progress.add(step)
            if step.skipped:
                log.warning(
                    "step %d skipped: the loss is %s, or its gradient is not finite",
                    step.number,
                    step.loss,
                )
            logged = step.number % self._config.log_every == 0
            self._reporter.step(step.number + 1, self._log(step) if logged else {})
            if step.stop:
                return True
            self._signals.log_ignored()
            with self._signals.saving():
                self._checkpoints.after_step(self._progress, self._interval)
            self._begin_step(step.number + 1)
        self._watchdog.rest()
        self._progress.end_interval(self._interval)
        return False

    def _begin_step(self, number: int) -> None:
        """The step that comes, by its number. What a timeline takes is no part of an interval."""
        trace = self._trace
        if trace is not None and trace.is_due:
            self._progress.end_interval(self._interval)
            trace.turn()
            self._interval.restart()
        if trace is not None:
            trace.before_step()
        self._watchdog.begin(number)

    def _stopped(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Save, and say what it took beside the time that there was."""
        with self._signals.saving():
            mine = self._signals.name, self._signals.waited_seconds()
            told = [each for each in self._world.allgather_objects(mine) if each[0] is not None]
            start = time.perf_counter()
            self._checkpoints.save(self._progress, self._interval)
            self._checkpoints.close()
            seconds, lead = time.perf_counter() - start, lead_seconds()
            took = {
                "signal": told[0][0],
                "waited_seconds": max(waited for _, waited in told),
                "saved_in_seconds": seconds,
                "lead_seconds": lead,
            }
            self._tell(
                f"stopped by {took['signal']} after step {self._trainer.num_steps}, "
                f"{took['waited_seconds']:.2f} s after it came; saved in {seconds:.2f} s"
                + (f" of {lead:g} s that there were" if lead is not None else "")
                + f": go on with resume={self._folder.path}"
            )
            summary = {"status": "stopped", **took, **self._summary(evaluation)}
            from_root(self._world, lambda: self._folder.write_summary(summary))
        if self._trace is not None:
            self._trace.close()
        self._trainer.close()
        return summary

    def _tell(self, words: str) -> None:
        log.info(words)
        self._reporter.say(words)

    def _is_evaluated(self, epoch: int) -> bool:
        """After an epoch."""
        last = epoch + 1 == self._config.epochs
        return last or (epoch + 1) % self._config.evaluate_every == 0

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self._is_evaluated(epoch):
            at_border = self._stop_if_told if self._config.saves else no_border
            test = self._trainer.dataset.test
            values = evaluation_values(self._trainer.evaluate(test, at_border=at_border))
            self._trackers.log(self._trainer.num_steps, {"epoch": epoch + 1, **values})
            log.info("epoch %d: %s", epoch + 1, values)
        self._reporter.epoch(epoch + 1, values)
        return values

    def _stop_if_told(self) -> None:
        """`StopError` on all ranks where one was told to stop: the run that goes on makes the
        evaluation again. Cost: an allreduce of one integer. Collective.
        """
        told = np.array([self._signals.told()], np.int32)
        self._world.allreduce(told, "max")
        if told[0]:
            raise StopError

    def _log(self, step: Step) -> dict[str, Any]:
        """Write a line of metrics for the steps since the last one; what the progress bar shows of
        it.
        """
        values = self._interval.values(step)
        self._progress.end_interval(self._interval)
        self._interval.begin()
        self._trackers.log(step.number, values)
        self._last_line = step.number, values
        return {
            key: values[key]
            for key in ("epoch", "loss", "samples_per_second", "communication_share")
        }

    def _summary(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        return figures(self._config, self._trainer, self._folder, self._progress, evaluation)

    def _tell_failure(self, error: DistMLError, evaluation: Mapping[str, Any]) -> None:
        """Rank 0's summary of a run that ends early; where even that can't be written, the error
        alone says it.
        """
        summary = {"status": "failed", "error": str(error), **self._summary(evaluation)}
        if self._world.rank == 0:
            with contextlib.suppress(DataError):
                self._folder.write_summary(summary)
