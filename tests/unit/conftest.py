"""For the unit tests: many of them share a process."""

from collections.abc import Iterator

import pytest

from dist_ml.train import logs


@pytest.fixture(autouse=True)
def no_log_left() -> Iterator[None]:
    """A run's log that a test left open would receive the failures of the tests after it."""
    yield
    logs.stop()
