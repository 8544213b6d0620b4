"""What every model is: a list of named blocks, each the next one's input."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from dist_ml.models.step_context import StepContext

# Makes a linear layer: (name in the state dict, inputs, outputs). The seam for another kernel, or
# for a layer whose weights are spread over ranks.
LinearFactory: TypeAlias = Callable[[str, int, int], nn.Linear]


def plain_linear(name: str, inputs: int, outputs: int) -> nn.Linear:  # noqa: ARG001
    """Torch's own layer."""
    return nn.Linear(inputs, outputs)


class BlockModel(nn.Module, ABC):
    """A model that runs block after block, so that a range of blocks is a pipeline stage.

    State-dict names are plain: they name layers, not blocks or kernels. `context` tells the layers
    which samples pass through them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.context = StepContext()

    @abstractmethod
    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """The blocks in order; each takes the activations of the one before, and holds the layers
        whose parameters it uses: what replaces a layer in the model alone changes nothing.
        """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the last block for the inputs of the first."""
        for _, block in self.named_blocks():
            inputs = block(inputs)
        return inputs


def forward(model: nn.Module, inputs: torch.Tensor, autocast: bool = False) -> torch.Tensor:
    """The model's outputs in the dtype of its inputs, however the products were computed.

    `autocast`: products in bfloat16, parameters and gradients in their own dtype.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs: torch.Tensor = model(inputs)
    return outputs.to(inputs.dtype)
