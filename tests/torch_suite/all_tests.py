"""All of torch's tests, for `table.py`, which starts it on ranks; not found by pytest alone."""

import os

import pytest

from dist_ml.comm import mpi
from tests.torch_suite.in_process import case

pytestmark = pytest.mark.mpi
_names = os.environ.get("TORCH_SUITE_TESTS")
TestDistributed = case(
    os.environ["TORCH_SUITE_BACKEND"],
    mpi.world(),
    _names.split(",") if _names else None,
    os.environ.get("TORCH_SUITE_GATES", "gloo"),
)
