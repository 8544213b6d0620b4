"""Malformed configurations on several ranks: all of them refuse, with one message, or all of them
have built a trainer.
"""

import os

import pytest

from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DistMLError
from dist_ml.train.build import build_mesh, build_trainer
from tests import malformed

pytestmark = [
    pytest.mark.mpi(min_size=2),
    pytest.mark.skipif(os.environ.get("DIST_ML_NUMBA") == "0", reason="the same without numba"),
]


def outcome(world: Communicator, mapping: dict[str, object]) -> tuple[str, bool]:
    """What comes of it on this rank: the words of the refusal, empty where there is none; and
    whether all ranks know of it.
    """
    try:
        config = from_mapping(TrainConfig, mapping)  # on all ranks alike
    except DistMLError as error:
        return str(error), True
    mesh = None
    try:
        mesh = build_mesh(config, world)
        build_trainer(config, mesh).close()
    except DistMLError as error:
        return str(error), error.agreed
    finally:
        if mesh is not None:
            mesh.free()  # MPICH has 2,048 communicators for all that a process makes
    return "", True


NUM_MAPPINGS = malformed.NUM_MAPPINGS // 3


def test_all_ranks_refuse_together(world: Communicator) -> None:
    """Other ones on each number of ranks."""
    refused = 0
    for case, mapping in malformed.mappings(NUM_MAPPINGS, seed=world.size):
        told = world.allgather_objects(outcome(world, mapping))
        assert len({words for words, _ in told}) == 1, (case, told)
        assert all(agreed for _, agreed in told), (case, told)
        refused += bool(told[0][0])
    assert NUM_MAPPINGS // 2 < refused < NUM_MAPPINGS
