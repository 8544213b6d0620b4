"""What makes a model's layers: the seam for other kernels, and for layers that ranks share.

A model asks for its layers in the order in which activations pass through them, and hands on how
the activation lies (`Spread`); so it is the same model whether its layers are whole or not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from dist_ml.models.spread import WHOLE, Spread

# Makes a linear layer: (name in the state dict, inputs, outputs).
MakeLinear: TypeAlias = Callable[[str, int, int], nn.Linear]


class LayerFactory(ABC):
    """Makes layers by their name in the state dict and their global sizes.

    `num_parts`: into how many parts layers are cut. Each method is given how the layer's inputs
    lie, and returns the layer with how its outputs do.
    """

    num_parts = 1

    @abstractmethod
    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        given: Spread = WHOLE,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Linear, Spread]:
        """[..., inputs] -> [..., outputs]. `units`: groups of inputs, and of outputs, that stay on
        one rank (the features of an attention head).
        """

    @abstractmethod
    def convolution(
        self,
        name: str,
        channels_in: int,
        channels_out: int,
        kernel: int,
        given: Spread,
        stride: int = 1,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Conv2d, Spread]:
        """[b, channels_in, h, w] -> [b, channels_out, ceil(h / stride), ceil(w / stride)], by a
        `kernel` of an odd size, with zeros around the image and without bias.

        The spreads' features are channels; `units`: of them, groups that stay on one rank (those
        of a group norm).
        """

    @abstractmethod
    def group_norm(self, name: str, groups: int, channels: int, given: Spread) -> nn.GroupNorm:
        """[b, channels, h, w] -> the same, as it lay: each group of channels of each sample with
        mean 0 and variance 1, then scaled and shifted by channel. `given` keeps groups together.
        """

    @abstractmethod
    def embedding(self, name: str, num: int, width: int) -> tuple[nn.Embedding, Spread]:
        """int64 [b, positions], 0 … num-1, which every rank has -> [b, positions, width]."""

    @abstractmethod
    def projection(self, name: str, inputs: int, width: int) -> tuple[nn.Linear, Spread]:
        """[b, ..., inputs], numbers that every rank has -> [b, ..., width], which lies as an
        embedding's vectors would.
        """

    @abstractmethod
    def positions(self, name: str, num: int, width: int, given: Spread) -> nn.Embedding:
        """int64 [n], 0 … num-1 -> [n, width], to be added to each sample of an activation that lies
        as `given`: this rank's features of it.
        """

    @abstractmethod
    def norm(self, name: str, width: int, given: Spread) -> nn.LayerNorm:
        """[..., width] -> the same, which lies as it was; mean and variance are over all features,
        whichever ranks hold them.
        """

    @abstractmethod
    def tied_linear(
        self, name: str, embedding: nn.Embedding, given: Spread
    ) -> tuple[nn.Module, Spread]:
        """[..., width] -> [..., num], by the weights of an embedding that this factory made, which
        the module holds: one parameter with two uses.
        """


def plain_linear(name: str, inputs: int, outputs: int) -> nn.Linear:  # noqa: ARG001
    """Torch's own layer."""
    return nn.Linear(inputs, outputs)


class WholeLayers(LayerFactory):
    """Every layer whole on this rank; linear ones by `make_linear`."""

    def __init__(self, make_linear: MakeLinear = plain_linear) -> None:
        self._make_linear = make_linear

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        given: Spread = WHOLE,
        units: tuple[int, int] = (1, 1),  # noqa: ARG002
    ) -> tuple[nn.Linear, Spread]:
        return self._make_linear(name, inputs, outputs), given

    def convolution(
        self,
        name: str,  # noqa: ARG002
        channels_in: int,
        channels_out: int,
        kernel: int,
        given: Spread,
        stride: int = 1,
        units: tuple[int, int] = (1, 1),  # noqa: ARG002
    ) -> tuple[nn.Conv2d, Spread]:
        around = kernel // 2
        layer = nn.Conv2d(channels_in, channels_out, kernel, stride, around, bias=False)
        return layer, given

    def group_norm(self, name: str, groups: int, channels: int, given: Spread) -> nn.GroupNorm:  # noqa: ARG002
        return nn.GroupNorm(groups, channels)

    def embedding(self, name: str, num: int, width: int) -> tuple[nn.Embedding, Spread]:  # noqa: ARG002
        return nn.Embedding(num, width), WHOLE

    def projection(self, name: str, inputs: int, width: int) -> tuple[nn.Linear, Spread]:
        return self._make_linear(name, inputs, width), WHOLE

    def positions(self, name: str, num: int, width: int, given: Spread) -> nn.Embedding:  # noqa: ARG002
        return nn.Embedding(num, width)

    def norm(self, name: str, width: int, given: Spread) -> nn.LayerNorm:  # noqa: ARG002
        return nn.LayerNorm(width)

    def tied_linear(
        self,
        name: str,  # noqa: ARG002
        embedding: nn.Embedding,
        given: Spread,
    ) -> tuple[nn.Module, Spread]:
        return TiedLinear(embedding), given


class TiedLinear(nn.Module):
    """[..., width] -> [..., num]: the product with each vector of `embedding`."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.embedding.weight)
