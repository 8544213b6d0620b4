"""What the cluster tests share; each is skipped in words where the machine can't do it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_slurm import VirtualSlurm, missing


@pytest.fixture(scope="module")
def slurm() -> Iterator[VirtualSlurm]:
    """Three nodes of two CPUs. The folder's name is short because sockets live in it."""
    if lacking := missing():
        pytest.skip(lacking)
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        VirtualSlurm(3, 2, Path(folder)) as cluster,
    ):
        yield cluster
