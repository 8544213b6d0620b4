"""Multi-head self-attention, as a block of a pre-norm Transformer."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dist_ml.models.dropout import Dropout
from dist_ml.models.rotary import Rotary


class SelfAttention(nn.Module):
    """x + output(attention(qkv(norm(x)))), dropout before the sum.

    The rows of `qkv` are ordered by head, [heads, 3, head_size]: a range of rows that holds whole
    heads is these heads' queries, keys and values. So a rank that holds a part of `qkv` computes
    its own heads, as many as there are, and no others.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2; where the norm
    is: Xiong et al., "On layer normalization in the Transformer architecture", ICML 2020.
    """

    def __init__(
        self,
        norm: nn.LayerNorm,
        qkv: nn.Linear,
        output: nn.Linear,
        dropout: Dropout | None,
        head_size: int,
        causal: bool,
        rotary: Rotary | None,
    ) -> None:
        super().__init__()
        self.norm, self.qkv, self.output = norm, qkv, output
        self._dropout = dropout
        self._head_size, self._causal, self._rotary = head_size, causal, rotary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, positions, width] -> the same. Causal: a position sees itself and those before it.

        Heads of [positions, positions] products are never in memory as a whole where torch has a
        fused kernel.
        """
        qkv = self.qkv(self.norm(x))
        b, s, rows = qkv.shape
        qkv = qkv.view(b, s, rows // (3 * self._head_size), 3, self._head_size)
        queries_and_keys, values = qkv.split((2, 1), dim=3)
        if self._rotary is not None:
            queries_and_keys = self._rotary(queries_and_keys)
        query, key = (part.transpose(1, 2) for part in queries_and_keys.unbind(3))
        value = values.squeeze(3).transpose(1, 2)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self._causal)
        outputs: torch.Tensor = self.output(mixed.transpose(1, 2).reshape(b, s, rows // 3))
        if self._dropout is not None:
            outputs = self._dropout(outputs)
        return x + outputs
