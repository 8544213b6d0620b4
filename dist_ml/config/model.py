"""The network and its loss."""

from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError

Activation = Literal["relu", "gelu", "tanh", "sigmoid", "silu"]
LossName = Literal["cross_entropy", "mse"]


@dataclass(frozen=True)
class ModelConfig:
    """A multi-layer perceptron; its first width is the data's number of features, its last the
    data's number of outputs.
    """

    name: Literal["mlp"] = "mlp"  # which kind of model
    hidden: tuple[int, ...] = (
        128,
        64,
    )  # widths of the hidden layers, in order; empty = a linear model
    activation: Activation = "relu"  # between the layers
    dropout: float = 0.0  # probability that a hidden activation is dropped, in steps of 2^-16
    loss: LossName | None = None  # null = cross-entropy for classes, mean squared error for values

    def __post_init__(self) -> None:
        for index, width in enumerate(self.hidden):
            if width < 1:
                raise ConfigError(
                    f"hidden[{index}]={width} is no width; every hidden layer needs 1 unit or more"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout={self.dropout} is no probability below 1; use 0 for none, 0.5 for half"
            )
