"""What makes a model's layers: the seam for other kernels, and for layers that ranks share.

A model asks for its layers in the order in which activations pass through them, and hands on how
the activation lies (`Spread`); so it is the same model whether its layers are whole or not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from dist_ml.models.spread import WHOLE, Spread

# Makes a linear layer: (name in the state dict, inputs, outputs).
MakeLinear: TypeAlias = Callable[[str, int, int], nn.Linear]


class LayerFactory(ABC):
    """Makes layers by their name in the state dict and their global sizes.

    Each method is given how the layer's inputs lie, and returns the layer with how its outputs do.
    """

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
