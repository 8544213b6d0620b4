"""A CNN over MPI, on data and pipeline meshes, whole gradients or shards of them: one process'
numbers.
"""

import functools
from typing import Any

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from tests.image_world import on_digits
from tests.pipeline_world import Trained, assert_same, on_mesh, train

pytestmark = pytest.mark.mpi(min_size=2)

NUM_STEPS = 6
EXCHANGES: dict[str, dict[str, Any]] = {
    "dense": {},
    "zero2": {"data_parallel": {"name": "zero2"}, "allreduce": {"bucket_bytes": 4096}},
}


@functools.cache
def alone() -> Trained:
    return train(Communicator(Loopback()), on_digits(), NUM_STEPS)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", ["one_f_one_b", "zb_h1", "zb_v"])
def test_every_mesh_trains_as_one_process(world: Communicator, name: str, exchange: str) -> None:
    for pipeline in range(1, world.size + 1):
        if world.size % pipeline:
            continue
        choices = {"name": name} if pipeline > 1 else {}
        config = on_digits(**EXCHANGES[exchange])
        mesh = on_mesh(config, world.size // pipeline, pipeline, **choices)
        found = train(world, mesh, NUM_STEPS)
        assert_same([world.broadcast_object(found, 0)], alone())
