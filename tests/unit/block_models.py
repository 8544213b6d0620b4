"""What every model of blocks keeps to."""

from collections.abc import Sequence

import torch

from dist_ml.models.blocks import INPUTS, BlockModel


def assert_blocks_are_the_model(model: BlockModel, x: torch.Tensor, names: Sequence[str]) -> None:
    """One after the other they make its outputs, and they hold its parameters in order."""
    passed, parameters = x, []
    for block in model.blocks():
        passed = block.module(passed)
        parameters += list(block.module.parameters())
    assert torch.equal(passed, model(x))
    assert [block.name for block in model.blocks()] == names
    assert [block.sources for block in model.blocks()] == [(INPUTS,), *zip(names[:-1])]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
