"""For the unit tests: many of them share a process."""

import signal
from collections.abc import Iterator

import pytest

from dist_ml.train import logs


@pytest.fixture(autouse=True)
def no_log_left() -> Iterator[None]:
    """A run's log that a test left open would receive the failures of the tests after it."""
    yield
    logs.stop()


@pytest.fixture(autouse=True)
def no_signal_left() -> Iterator[None]:
    """What a run does to signals until its process ends, here or in a fixture of several tests: a
    child that inherits an ignored one can't heed it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
