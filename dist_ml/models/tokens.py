"""What a sequence model takes a sample for: a sequence of tokens, and how it begins and ends with
them.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from dist_ml.models.dropout import Dropout
from dist_ml.models.samples import Samples


class Tokens(NamedTuple):
    """How a flat sample is a sequence: `num` tokens, each whole numbers of a vocabulary
    (`num_features` 0) or `num_features` numbers, of which `channels` lie apart in the sample.

    An image's tokens are its rows, with all channels. Features without a shape are cut in equal
    runs, as near to a square as divides.
    """

    num: int
    num_features: int = 0
    channels: int = 1

    @classmethod
    def of(cls, samples: Samples) -> "Tokens":
        if samples.task == "next_token":
            return cls(samples.num_features)
        if len(samples.shape) == 3:
            channels, height, width = samples.shape
            return cls(height, channels * width, channels)
        n = samples.num_features
        size = max(size for size in range(1, math.isqrt(n) + 1) if n % size == 0)
        return cls(n // size, size)

    def cut(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch [b, features] as [b, num, num_features]; whole numbers [b, num] as they are."""
        if not self.num_features:
            return inputs
        rows = inputs.view(len(inputs), self.channels, self.num, -1)
        return rows.transpose(1, 2).reshape(len(inputs), self.num, self.num_features)


class Embed(nn.Module):
    """The first block: tokens become vectors, with learned positions added where there are some."""

    def __init__(
        self,
        tokens: Tokens,
        embedding: nn.Module,
        positions: nn.Embedding | None,
        dropout: Dropout | None,
    ) -> None:
        super().__init__()
        self._tokens = tokens
        self.embedding, self.positions = embedding, positions
        self._dropout = dropout

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch of samples, flat -> [b, tokens, width]."""
        x: torch.Tensor = self.embedding(self._tokens.cut(inputs))
        if self.positions is not None:
            x = x + self.positions(torch.arange(x.shape[1], device=x.device))
        return x if self._dropout is None else self._dropout(x)


class Head(nn.Module):
    """The last block: outputs of each token, or (`pooled`) of their mean."""

    def __init__(self, norm: nn.LayerNorm, head: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.norm, self.head = norm, head
        self._pooled = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, tokens, width] -> [b, tokens, outputs], or [b, outputs]."""
        x = self.norm(x)
        outputs: torch.Tensor = self.head(x.mean(1) if self._pooled else x)
        return outputs
