"""The Transformer that a PyTorch user would write with torch's best settings: fused attention, one
product for queries, keys and values.
"""

import torch
from torch import nn
from torch.nn import functional


class BareLayer(nn.Module):
    """Pre-norm attention and feed-forward; rows of `qkv` are [heads, 3, size]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width),
                "qkv": nn.Linear(width, 3 * width),
                "output": nn.Linear(width, width),
            }
        )
        self.feedforward = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width),
                "expand": nn.Linear(width, 4 * width),
                "contract": nn.Linear(4 * width, width),
            }
        )
        self.heads, self.dropout = heads, dropout

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """x [b, s, width]; turns complex [s, 1, 1, size / 2]."""
        b, s, width = x.shape
        part = self.attention
        rows = part["qkv"](part["norm"](x)).view(b, s, self.heads, 3, -1)
        both, value = rows.split((2, 1), 3)
        query, key = turned(both, turns).transpose(1, 2).unbind(3)
        value = value.squeeze(3).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self._drop(part["output"](mixed.transpose(1, 2).reshape(b, s, width)))
        part = self.feedforward
        hidden = functional.gelu(part["expand"](part["norm"](x)))
        return x + self._drop(part["contract"](hidden))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout, self.training)


def turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """x [b, s, heads, 2, size] with each pair of features times its complex number."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


class BareTransformer(nn.Module):
    """A decoder of bytes with rotary positions; its state dict has the names of ours."""

    def __init__(self, width: int, depth: int, heads: int, num_tokens: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.layers = nn.ModuleList(BareLayer(width, heads, dropout) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        size = width // heads
        rates = 10_000.0 ** -(torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(float(num_tokens)), rates)[:, None, None]
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), False)
        self.dropout = dropout

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [b, num_tokens] -> [b, num_tokens, 256]."""
        x = functional.dropout(self.embedding(ids), self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, self.turns)
        outputs: torch.Tensor = self.head(self.norm(x))
        return outputs
