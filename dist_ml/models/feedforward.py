"""The layers between attentions, as a block of a pre-norm Transformer."""

from collections.abc import Callable

import torch
from torch import nn

from dist_ml.models.dropout import Dropout


class FeedForward(nn.Module):
    """x + contract(activation(expand(norm(x)))), dropout before the sum; each position for itself.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.3.
    """

    def __init__(
        self,
        norm: nn.LayerNorm,
        expand: nn.Linear,
        contract: nn.Linear,
        activation: Callable[[torch.Tensor], torch.Tensor],
        dropout: Dropout | None,
    ) -> None:
        super().__init__()
        self.norm, self.expand, self.contract = norm, expand, contract
        self._activation, self._dropout = activation, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, positions, width] -> the same."""
        outputs: torch.Tensor = self.contract(self._activation(self.expand(self.norm(x))))
        if self._dropout is not None:
            outputs = self._dropout(outputs)
        return x + outputs
