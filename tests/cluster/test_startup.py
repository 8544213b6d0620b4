"""Ranks that start on emulated hosts: what each asks of the file system that all share."""

import pytest

from dist_ml.bench import startup
from dist_ml.bench.counted_start import CONFIGURATIONS, MADE, MODULES
from dist_ml.bench.worlds import StartedWorlds
from dist_ml.launch.emulated_network import missing
from tests.unit.bench_worlds import bench_config, failed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


def test_rank_0_alone_reads_configurations_and_makes_folders(flavour: str) -> None:
    config = bench_config("startup", "ranks=[3]", "hosts=2", f"mpi={flavour}")
    result = startup.run(config, StartedWorlds(3, flavour))
    assert failed(result.checks) == [], result.records
    (found,) = result.records
    for counted in (CONFIGURATIONS, MADE, MODULES):
        assert found[f"{counted}, rank 0"] > 0
