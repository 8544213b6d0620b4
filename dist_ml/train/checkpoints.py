"""When a run's state is saved, with what beside it, and how the next process finds it."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.reader import Checkpoint
from dist_ml.checkpoint.writer import save
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.measure.environment import environment
from dist_ml.train.interval import Interval
from dist_ml.train.load_state import load, load_weights
from dist_ml.train.progress import Progress
from dist_ml.train.state import saved_numbers, saved_pieces
from dist_ml.train.trainer import Trainer

log = logging.getLogger(__name__)

# Settings of which the parts of a state depend that only hold on a mesh like the one it was saved
# on (thresholds, regions).
_SHAPING = ("sparse", "pipeline", "operator_parallel", "data_parallel")


class Checkpoints:
    """Saves a trainer's state, and the run's figures so far, in `folder`. `mapping` is the run's
    configuration. Collective.
    """

    def __init__(
        self, config: CheckpointConfig, trainer: Trainer, folder: Path, mapping: Mapping[str, Any]
    ) -> None:
        self._config, self._trainer, self._folder = config, trainer, folder
        self._keep = Keep(config.keep_last, config.keep_every)
        world = trainer.mesh.world
        self._saver = AsyncSaver(folder, world, self._keep) if config.asynchronous else None
        self._fixed = {
            "config": mapping,
            "mesh": trainer.mesh.sizes,
            "environment": environment() if trainer.mesh.world.rank == 0 else {},
        }

    def after_step(self, progress: Progress, interval: Interval) -> None:
        """Save if it is time, and take a save that is under way further."""
        every = self._config.every
        if every and self._trainer.num_steps % every == 0:
            self.save(progress, interval)
        elif self._saver is not None:
            self._tell(self._saver.poll())

    def save(self, progress: Progress, interval: Interval) -> None:
        """Save now, or begin to. The seconds for which training stood still are entered in
        `progress`, and are no part of an interval.
        """
        start = time.perf_counter()
        trainer, world = self._trainer, self._trainer.mesh.world
        progress.end_interval(interval)
        progress.num_saved += 1
        header = {
            **self._fixed,
            "ranks": saved_numbers(trainer),
            "progress": progress.state_dict(world.traffic.total()),
            "interval": interval.state_dict(),
        }
        pieces = saved_pieces(trainer)
        if self._saver is None:
            self._tell(save(self._folder, trainer.num_steps, pieces, header, world, self._keep))
        else:
            self._saver.save(trainer.num_steps, pieces, header)
        seconds = time.perf_counter() - start
        progress.save_seconds += seconds
        log.info("step %d: training stood still for %.3f s", trainer.num_steps, seconds)
        interval.restart()

    def close(self) -> None:
        """Wait for what is under way."""
        if self._saver is not None:
            self._tell(self._saver.close())

    def _tell(self, path: Path | None) -> None:
        if path is not None:
            log.info("saved in %s", path)


def is_imported(checkpoint: Checkpoint) -> bool:
    """Does it hold weights alone (`dist-ml checkpoint import`), for a run to begin with?"""
    return "imported" in checkpoint.header


def go_on(
    trainer: Trainer,
    checkpoint: Checkpoint,
    mapping: Mapping[str, Any],
    progress: Progress,
    interval: Interval,
) -> None:
    """Make trainer and figures those of a checkpoint; of imported weights, the trainer's weights.
    Collective; `DataError` on all ranks where it is of something else.
    """
    if is_imported(checkpoint):
        load_weights(trainer, checkpoint)
        return
    header = checkpoint.header
    before = header["config"]
    own = header["mesh"] == trainer.mesh.sizes and all(
        before.get(key) == mapping[key] for key in _SHAPING
    )
    load(trainer, checkpoint, header["ranks"], own)
    progress.load_state_dict(header["progress"])
    interval.load_state_dict(header["interval"])
