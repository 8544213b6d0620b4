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
