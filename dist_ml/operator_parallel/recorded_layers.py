"""The layers that a model asks for, without making them twice: sizes, for choosing a layout."""

from typing import Any

from torch import nn

from dist_ml.models.layers import WholeLayers
from dist_ml.models.spread import WHOLE, Spread
from dist_ml.operator_parallel.words import Layer


class RecordedLayers(WholeLayers):
    """Whole layers; `linear_layers` are those asked for so far, in order. `convolves`: some were
    convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear_layers: list[Layer] = []
        self.convolves = False

    def convolution(self, *arguments: Any, **named: Any) -> tuple[nn.Conv2d, Spread]:
        self.convolves = True
        return super().convolution(*arguments, **named)

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        given: Spread = WHOLE,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Linear, Spread]:
        self.linear_layers.append(Layer(name, inputs, outputs, units))
        return super().linear(name, inputs, outputs, given, units)
