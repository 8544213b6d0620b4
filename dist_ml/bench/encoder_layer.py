"""An encoder layer of BERT in plain PyTorch, each step as it is written: what `dist-ml bench
dataflow` takes apart.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class LayerSizes(NamedTuple):
    """Of an encoder layer and its batch."""

    batch: int
    tokens: int
    heads: int
    width: int
    hidden: int


class EncoderLayer(nn.Module):
    """Attention and two linear layers, a dropout before each sum and on the attention, the norm
    behind the sum: x [batch, tokens, width] -> the same.

    Source: Devlin, Chang, Lee, Toutanova, "BERT", NAACL 2019; Vaswani et al., NeurIPS 2017.
    """

    def __init__(self, sizes: LayerSizes, dropout: float) -> None:
        super().__init__()
        self._heads, self._dropout = sizes.heads, dropout
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)
        self.expand = nn.Linear(sizes.width, sizes.hidden)
        self.contract = nn.Linear(sizes.hidden, sizes.width)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = attention(self.qkv(x), self._heads, self._dropout)
        x = self.norms[0](x + functional.dropout(self.output(mixed), self._dropout))
        hidden = functional.dropout(self.expand(x).relu(), self._dropout)
        outputs: torch.Tensor = x + functional.dropout(self.contract(hidden), self._dropout)
        return self.norms[1](outputs)  # type: ignore[no-any-return]


def attention(qkv: torch.Tensor, heads: int, dropout: float) -> torch.Tensor:
    """[batch, tokens, 3 width] -> [batch, tokens, width], every score in memory."""
    b, s, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    size = width // heads
    query, key, value = qkv.view(b, s, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    scores = query @ key.transpose(-2, -1) / math.sqrt(size)
    shares = functional.dropout(scores.softmax(-1), dropout)
    return (shares @ value).transpose(1, 2).reshape(b, s, width)
