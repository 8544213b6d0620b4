"""The network and its loss."""

from dataclasses import dataclass

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A model of `dist_ml.models.MODELS`; its first width is the data's number of features, its
    last the data's number of outputs.
    """

    name: str = "mlp"  # which kind of model: one of MODELS
    # widths of the hidden layers, in order; empty = a linear model
    hidden: tuple[int, ...] = (128, 64)
    activation: str = "relu"  # between the layers: one of models.mlp's ACTIVATIONS
    dropout: float = 0.0  # probability that a hidden activation is dropped, in steps of 2^-16
    # one of LOSSES; null = cross-entropy for classes, mean squared error for values
    loss: str | None = None

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
