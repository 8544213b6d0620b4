"""For all tests: every rank's stack at the time limit, the same hypothesis examples on every rank, MPI tests only under MPI."""

from pathlib import Path

import hypothesis
import pytest

from dist_ml.launch import stacks

MPI_TESTS = Path(__file__).parent / "mpi"

hypothesis.settings.register_profile("dist_ml", derandomize=True, deadline=None)
hypothesis.settings.load_profile("dist_ml")


def pytest_configure(config: pytest.Config) -> None:
    stacks.arm()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without --with-mpi, tests/mpi runs through test_mpi_worlds.py alone and would only appear here as skipped."""
    named = any(MPI_TESTS == Path(argument.split("::")[0]).resolve() for argument in config.args)
    return True if collection_path == MPI_TESTS and not config.getoption("--with-mpi") and not named else None
