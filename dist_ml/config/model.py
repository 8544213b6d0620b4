"""The network and its loss."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A model of `dist_ml.models.MODELS`; the sizes of what comes in and of what comes out are the
    data's.
    """

    name: str = "mlp"  # which kind of model: one of MODELS
    # widths of the hidden layers, in order; empty = a linear model
    hidden: tuple[int, ...] = (128, 64)
    activation: str = "relu"  # between the layers: one of models.mlp's ACTIVATIONS
    # probability that a hidden activation is dropped (cnn: a pooled feature), in steps of 2^-16
    dropout: float = 0.0
    # channels of the residual stream, by stage; each stage but the first halves the image (cnn)
    channels: tuple[int, ...] = (32, 64)
    blocks_per_stage: int = 2  # residual blocks in each stage (cnn)
    groups: int = 8  # of channels that are normalised together; must divide all channels (cnn)
    width: int = 128  # features of a token between the layers (transformer)
    depth: int = 4  # layers of attention and feed-forward (transformer)
    heads: int = 4  # of each attention; must divide the width (transformer)
    # features between the two layers of a feed-forward; null = 4 width (transformer)
    feedforward: int | None = None
    # how an attention knows where tokens are: rotary turns queries and keys, learned adds vectors
    # (transformer)
    positions: Literal["rotary", "learned"] = "rotary"
    tied: bool = False  # the head uses the weights of the tokens' embedding (transformer, texts)
    # one of LOSSES; null = cross-entropy for classes, mean squared error for values
    loss: str | None = None

    def __post_init__(self) -> None:
        for index, width in enumerate(self.hidden):
            if width < 1:
                raise ConfigError(
                    f"hidden[{index}]={width} is no width; every hidden layer needs 1 unit or more"
                )
        for key in ("width", "depth", "heads", "feedforward"):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise ConfigError(f"{key}={size} makes no layer; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout={self.dropout} is no probability below 1; use 0 for none, 0.5 for half"
            )
        self._check_channels()

    def _check_channels(self) -> None:
        if self.blocks_per_stage < 1 or self.groups < 1:
            raise ConfigError(
                f"blocks_per_stage={self.blocks_per_stage} and groups={self.groups} must be at "
                "least 1"
            )
        if not self.channels:
            raise ConfigError("channels=[] makes no stage; give the channels of one, as [32]")
        for index, (before, channels) in enumerate(pairwise((1, *self.channels))):
            if channels < before:
                raise ConfigError(
                    f"channels[{index}]={channels} is less than {before}; every stage needs 1 "
                    "channel or more, and hands on those of the stage before: don't let them shrink"
                )
            if channels % self.groups:
                raise ConfigError(
                    f"channels[{index}]={channels} can't be normalised in groups={self.groups} of "
                    "equal size; use a multiple of groups, or other groups"
                )
