"""Whole lines, where no cursor can be moved."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from dist_ml.launch.streams import discard
from dist_ml.train.display.words import clock, describe, result_lines

log = logging.getLogger(__name__)

# Lines come at most this often, and at the ends of epochs that are evaluated.
_SECONDS = 5.0


class PlainReporter:
    """Whole lines, for pipes, files and dumb terminals."""

    def __init__(
        self, num_steps: int, num_epochs: int, stream: TextIO | None = None, done: int = 0
    ) -> None:
        """`done`: steps of earlier processes."""
        self._num_steps, self._num_epochs = num_steps, num_epochs
        self._stream = stream or sys.stdout
        self._values: dict[str, float] = {}
        self._is_open = True
        self._done = done
        self._started = self._told = time.monotonic()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._values.update(values)
        if time.monotonic() - self._told >= _SECONDS:
            self._tell(f"step {step}/{self._num_steps}", step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._values.update(values)
        if epoch == self._num_epochs or time.monotonic() - self._told >= _SECONDS:
            self._tell(
                f"epoch {epoch}/{self._num_epochs}", self._num_steps * epoch / self._num_epochs
            )

    def finish(self, summary: Mapping[str, Any]) -> None:
        for line in result_lines(summary):
            self.say(line)

    def close(self) -> None:
        pass

    def _tell(self, place: str, step: float) -> None:
        self._told = time.monotonic()
        made = max(step - self._done, 1)
        left = (self._told - self._started) / made * (self._num_steps - step)
        self.say("  ".join([place, *describe(self._values), f"{clock(left)} left"]))

    def say(self, words: str) -> None:
        """A reader that went away, or a full disk, ends the lines but not the run."""
        if not self._is_open:
            return
        try:
            print(words, file=self._stream, flush=True)
        except OSError as error:
            self._is_open = False
            log.warning("standard output can't be written (%s): the run goes on without", error)
            discard(self._stream)
