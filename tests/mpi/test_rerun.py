"""fault.rerun on MPI, with each exchange that remembers nothing."""

import dataclasses
from typing import Any

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.config.allreduce import AllreduceConfig, DataParallelConfig
from dist_ml.errors import MachineError
from tests.pipeline_world import train
from tests.unit.test_rerun import CONFIG, STEPS, faulty

pytestmark = pytest.mark.mpi

EXCHANGES: dict[str, dict[str, Any]] = {
    "dense": {},
    "thread": {"allreduce": AllreduceConfig("ring", overlap="thread", bucket_bytes=64)},
    "zero1": {"data_parallel": DataParallelConfig("zero1")},
    "zero2": {"data_parallel": DataParallelConfig("zero2")},
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_transient_real_and_persistent(world: Communicator, name: str) -> None:
    config = dataclasses.replace(CONFIG, **EXCHANGES[name])
    last = world.size - 1

    def losses(wrong: Any) -> list[float]:
        return train(world, config, STEPS, faulty(world, wrong)).losses

    expected = losses(lambda *_: False)
    assert losses(lambda rank, call: rank == last and call == 1) == expected
    assert losses(lambda *_: True)[:4] == expected[:4]
    if world.size > 1:
        with pytest.raises(MachineError, match="a persistent fault: replica") as caught:
            losses(lambda rank, _: rank == last)
        assert caught.value.agreed
        assert str(last) in str(caught.value).split("computes")[0]
    world.barrier()
