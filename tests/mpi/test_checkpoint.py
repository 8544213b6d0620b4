"""Checkpoints on real ranks: one file system, several processes, saved with and without waiting."""

from pathlib import Path

import pytest
import torch

from dist_ml.checkpoint.async_saver import AsyncSaver
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.reader import newest
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from tests.checkpoint_world import CUTS, holds, pieces, state, values_of


@pytest.mark.parametrize("cut", CUTS)
def test_saved_by_these_ranks_and_read_by_them_otherwise(
    world: Communicator, cut: str, tmp_path: Path
) -> None:
    folder = Path(world.broadcast_object(str(tmp_path)))
    own = pieces(state(), CUTS[cut], world.rank, world.size)
    assert save(folder, 3, own, {"seed": 3}, world) == folder / "step-3"
    found = newest(folder, world)
    assert found is not None
    assert (found.step, found.header) == (3, {"seed": 3})
    for other in CUTS.values():
        for name, tensor in state().items():
            for region in other(tuple(tensor.shape), world.rank, world.size):
                assert torch.equal(found.read(name, region), values_of(tensor, region))


def test_saved_while_the_ranks_communicate(world: Communicator, tmp_path: Path) -> None:
    folder = Path(world.broadcast_object(str(tmp_path)))
    saver, committed = AsyncSaver(folder, world, Keep(last=1)), 0
    for step in range(1, 30):
        if step % 10 == 0:
            own = pieces(state(step), CUTS["flat"], world.rank, world.size)
            saver.save(step, own, {})
            for piece in own:
                piece.values.zero_()
        total = torch.tensor([step])
        world.allreduce(total)
        assert int(total) == step * world.size
        committed += saver.poll() is not None
    saver.close()
    assert committed <= 2
    found = newest(folder, world)
    assert found is not None
    assert found.step == 20
    assert list(found.names) == sorted(found.names, key=list(state()).index)
    assert holds(found, state(20))
