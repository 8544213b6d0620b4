"""A timeline over MPI: of stages and parts of layers, where there are the ranks for it."""

import dataclasses
from pathlib import Path

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.config.trace import TraceConfig
from dist_ml.trace import clock
from dist_ml.train.run import train_run
from tests import trace_rules
from tests.operator_world import on_mesh
from tests.pipeline_world import settings

pytestmark = pytest.mark.mpi


def test_a_run(world: Communicator, tmp_path: Path) -> None:
    path = world.broadcast_object(str(tmp_path / "run"))
    sizes = {2: (1, 2, 1), 4: (1, 2, 2), 8: (2, 2, 2)}.get(world.size, (world.size, 1, 1))
    config = settings(epochs=2, trace=TraceConfig(True, 1, 4))
    schedule = {"schedule": "one_f_one_b"} if sizes[1] > 1 else {}
    config = on_mesh(config, *sizes, **schedule)
    train_run(dataclasses.replace(config, folder=path), world)
    timeline = trace_rules.read(Path(path) / "trace" / "steps-1-4.json.gz")
    trace_rules.require_arrows(timeline)
    assert timeline.told["ranks"] == world.size
    assert bool(timeline.arrows) == (world.size > 1)
    for rank in range(world.size):
        tracks = {each.track for each in timeline.slices if each.rank == rank}
        assert {"steps", "compute"} <= tracks
        assert ("planned" in tracks) == (sizes[1] > 1)
    world.barrier()


def test_a_clock_of_ones_own_is_told_from_messages(world: Communicator) -> None:
    """The true offset is 0, since all ranks of this test share a machine."""
    reading = clock.read(world, name=f"rank {world.rank}")
    assert abs(reading.offset) <= reading.error
    assert (reading.error == 0) == (world.rank == 0)
    assert reading.error < 1_000_000_000
