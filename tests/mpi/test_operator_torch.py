"""Torch's tensor parallelism over gloo, on the ranks of MPI, learns what one process does: what our
steps are compared with is the same training.
"""

import pytest
import torch

from dist_ml.bench.tensor_parallel import plain_mlp, sgd_step, tensor_parallel_mlp
from dist_ml.comm.communicator import Communicator
from dist_ml.models import MLP

WIDTHS, NUM_STEPS = (12, 24, 12, 24, 12), 5


@pytest.mark.parametrize("sharded_rows", [False, True])
def test_losses_are_those_of_one_process(world: Communicator, sharded_rows: bool) -> None:
    if world.size < 2:
        pytest.skip("layers are cut over at least two ranks")
    weights = MLP(WIDTHS, seed=3).state_dict()
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(12, WIDTHS[0], generator=generator)
    targets = torch.randint(0, WIDTHS[-1], (12,), generator=generator)
    losses = []
    for model in (
        plain_mlp(WIDTHS, weights),
        tensor_parallel_mlp(world, WIDTHS, weights, sharded_rows),
    ):
        step = sgd_step(model, 0.1, lambda: (inputs, targets))
        losses.append([step() for _ in range(NUM_STEPS)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
