"""The encoder layer whose passes are fused: `EncoderLayer` with `fused_passes` between the
contractions, and a count of what these move.
"""

import math
import time
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from dist_ml.bench import fused_passes
from dist_ml.bench.encoder_layer import EncoderLayer, LayerSizes

_LEVELS = 1 << 32


class Drop(NamedTuple):
    """A dropout: its key, the first 32-bit number that stays, and the factor of what stays."""

    key: np.uint32
    threshold: np.uint32
    scale: np.float32


class Counted:
    """What fused passes have read and written, and how long they took, by their names."""

    def __init__(self) -> None:
        self.num_bytes: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, loop: Any, *arguments: Any, changes: int = 0) -> None:
        """Run a loop on tensors and numbers. Tensors count once, and the first `changes` twice:
        they are read and written.
        """
        name = loop.__name__
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        for x in (*tensors, *tensors[:changes]):
            self.num_bytes[name] += x.numel() * x.element_size()
        start = time.perf_counter()
        loop(*(_rows(x) if isinstance(x, torch.Tensor) else x for x in arguments))
        self.seconds[name] += time.perf_counter() - start

    def clear(self) -> None:
        self.num_bytes.clear()
        self.seconds.clear()


class FusedEncoderLayer(EncoderLayer):
    """As `EncoderLayer`; `seed` names the masks of a step."""

    def __init__(self, sizes: LayerSizes, dropout: float) -> None:
        super().__init__(sizes, dropout)
        self.counted = Counted()
        self.seed = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, width = x.shape
        size = width // self._heads
        qkv = self.qkv(x).view(b, s, 3, self._heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = query @ key.transpose(-2, -1)
        factor = np.float32(1 / math.sqrt(size))
        shares = _Softmax.apply(scores, factor, self.drop(0), self.counted)  # type: ignore[no-untyped-call]
        mixed = (shares @ value).transpose(1, 2).reshape(b, s, width)
        x = self._add_norm(self.output(mixed), x, 0)
        hidden = _ReluDropout.apply(self.expand(x), self.drop(1), self.counted)  # type: ignore[no-untyped-call]
        return self._add_norm(self.contract(hidden), x, 1)

    def drop(self, number: int) -> Drop:
        """One of the layer's four dropouts."""
        key = np.uint32((self.seed * 4 + number + 1) * 0x9E3779B9 % _LEVELS)
        threshold = min(round(self._dropout * _LEVELS), _LEVELS - 1)
        return Drop(key, np.uint32(threshold), np.float32(_LEVELS / (_LEVELS - threshold)))

    def _add_norm(self, x: torch.Tensor, residual: torch.Tensor, number: int) -> torch.Tensor:
        norm = self.norms[number]
        drop = self.drop(2 + number)
        out: torch.Tensor = _AddNorm.apply(  # type: ignore[no-untyped-call]
            x, residual, norm.weight, norm.bias, norm.eps, drop, self.counted
        )
        return out


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Any, factor: Any, drop: Drop, counted: Counted) -> Any:
        shares, dropped = torch.empty_like(scores), torch.empty_like(scores)
        counted(fused_passes.softmax, scores, factor, tuple(drop), shares, dropped)
        ctx.save_for_backward(shares)
        ctx.others = factor, drop, counted
        return dropped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        (shares,), (factor, drop, counted) = ctx.saved_tensors, ctx.others
        counted(fused_passes.softmax_backward, gradient, factor, tuple(drop), shares, changes=1)
        return gradient, None, None, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, drop: Drop, counted: Counted) -> Any:
        counted(fused_passes.relu_dropout, x, tuple(drop), changes=1)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.others = drop.scale, counted
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        (out,), (scale, counted) = ctx.saved_tensors, ctx.others
        counted(fused_passes.relu_dropout_backward, gradient, scale, out, changes=1)
        return gradient, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, residual: Any, weight: Any, bias: Any, epsilon: float, drop: Drop,
        counted: Counted,
    ) -> Any:  # fmt: skip
        mean, inverse = torch.empty(2, x.shape[:-1].numel()).unbind()
        summed, out = torch.empty_like(x), torch.empty_like(x)
        counted(
            fused_passes.add_norm, x, residual, tuple(drop), weight, bias, np.float32(epsilon),
            mean, inverse, summed, out,
        )  # fmt: skip
        ctx.save_for_backward(weight, mean, inverse, summed)
        ctx.others = drop, counted
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        weight, mean, inverse, summed = ctx.saved_tensors
        drop, counted = ctx.others
        d_summed, d_x = torch.empty_like(summed), torch.empty_like(summed)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        counted(
            fused_passes.add_norm_backward, gradient.contiguous(), tuple(drop), weight, mean,
            inverse, summed, d_summed, d_x, d_weight, d_bias,
        )  # fmt: skip
        return d_x, d_summed, d_weight, d_bias, None, None, None


def _rows(x: torch.Tensor) -> Any:
    """The same memory as rows, or of one dim as it is."""
    assert x.is_contiguous(), "a copy would be changed in its place"
    array = x.detach().numpy()
    return array.reshape(-1, x.shape[-1]) if x.ndim > 1 else array
