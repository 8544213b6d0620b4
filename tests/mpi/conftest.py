"""For tests that run on P ranks: the `world`, and outcomes that all ranks share.

A test that fails on one rank fails on all and names that rank, so that the ranks stay in step. A
rank that failed while others wait for it inside the test ends the job after a while instead: they
would wait for ever.
"""

import io
import json
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from _pytest.config import create_terminal_writer

from dist_ml.comm import mpi
from dist_ml.comm.communicator import Communicator

WAIT_SECONDS = float(os.environ.get("DIST_ML_TEST_WAIT_SECONDS", "30"))
OUTCOMES_FILE = "DIST_ML_TEST_OUTCOMES"
ABORTED = 70


class Agreement:
    """How a test ended on every rank. Talks on a communicator of its own, which nothing in a test
    can disturb.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def failures(self, failed: bool, text: str) -> dict[int, str]:
        """What went wrong, by rank; empty when no rank failed. All ranks call it after each phase
        of each test.
        """
        flags = np.zeros(self.comm.size, dtype=np.int32)
        request = self.comm.Iallgather(np.array([failed], dtype=np.int32), flags)
        deadline = time.monotonic() + WAIT_SECONDS
        while not request.Test():
            if failed and time.monotonic() > deadline:
                self._give_up(text)
            time.sleep(0.0005)
        if not flags.any():
            return {}
        texts = self.comm.allgather(text if failed else None)
        return {rank: text for rank, text in enumerate(texts) if text is not None}

    def _give_up(self, text: str) -> None:
        message = (
            f"rank {self.comm.rank} failed and other ranks still wait inside the test:\n{text}\n"
        )
        record(
            {
                "test": os.environ.get("PYTEST_CURRENT_TEST", "?").split(" ")[0],
                "outcome": "failed",
                "text": message,
            }
        )
        sys.__stderr__.write(message)  # type: ignore[union-attr]
        self.comm.Abort(ABORTED)


def record(outcome: dict[str, Any]) -> None:
    """One line a test for whoever started the ranks."""
    if path := os.environ.get(OUTCOMES_FILE):
        with open(path, "a") as file:
            file.write(json.dumps(outcome) + "\n")


@pytest.hookimpl(trylast=True)  # after the terminal reporter exists
def pytest_configure(config: pytest.Config) -> None:
    if not mpi.launched():
        return
    agreement = Agreement(mpi.load().COMM_WORLD.Dup())
    config.pluginmanager.register(CollectiveOutcomes(agreement), "collective-outcomes")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if agreement.comm.rank > 0 and reporter is not None:  # every rank would print the same
        reporter._tw = create_terminal_writer(config, io.StringIO())


class CollectiveOutcomes:
    """The pytest plugin that makes each report the same on all ranks, and records rank 0's."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what is meant for more ranks: it would show as skipped, which is for what this
        machine lacks.
        """
        size = self.agreement.comm.size
        items[:] = [
            item
            for item in items
            if all(m.kwargs.get("min_size", 1) <= size for m in item.iter_markers("mpi"))
        ]

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        failures = self.agreement.failures(report.failed, report.longreprtext)
        if failures:
            report.outcome = "failed"
            report.longrepr = "\n".join(
                f"on rank {rank} of {self.agreement.comm.size}:\n{text}"
                for rank, text in failures.items()
            )
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.agreement.comm.rank == 0 and (report.when == "call" or not report.passed):
            text = (
                report.longrepr[2]
                if report.skipped and isinstance(report.longrepr, tuple)
                else report.longreprtext
            )
            record({"test": report.nodeid, "outcome": report.outcome, "text": text})


@pytest.fixture(scope="session")
def world() -> Communicator:
    """All ranks of this run."""
    return mpi.world()
