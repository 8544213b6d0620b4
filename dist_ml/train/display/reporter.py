"""What a run tells while it trains, and whom: nobody on ranks other than 0."""

from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """What the trainer tells while it trains. Values: epoch, loss, accuracy, samples_per_second,
    communication_share (0 … 1).
    """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """So many optimizer steps are done; `values` are the newest known and may be empty."""

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """So many epochs are done; `values` hold the evaluation's test_accuracy and test_loss if
        there was one.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over; says what the summary holds of the result."""

    def say(self, words: str) -> None:
        """A line of its own."""

    def close(self) -> None:
        """Leave the terminal as it was found, whatever happened."""


class NullReporter:
    """For ranks other than 0."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass

    def say(self, words: str) -> None:
        pass

    def close(self) -> None:
        pass
