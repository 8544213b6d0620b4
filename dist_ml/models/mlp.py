"""A multi-layer perceptron whose weights and dropout masks don't depend on how the work is spread
over ranks.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.counter_random import stream
from dist_ml.models.blocks import Block, BlockModel, chain
from dist_ml.models.dropout import Dropout
from dist_ml.models.initialise import initialise_linear
from dist_ml.models.layers import LayerFactory, WholeLayers
from dist_ml.models.samples import Samples
from dist_ml.models.size import require_mlp_fits
from dist_ml.models.spread import WHOLE

# Those whose derivative is a function of their result overwrite their input, which a linear layer
# has no more use for.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "silu": nn.functional.silu,
}
_GAINS: dict[str, float] = {
    "relu": 2**0.5,
    "gelu": 2**0.5,
    "tanh": 5 / 3,
    "sigmoid": 1.0,
    "silu": 2**0.5,
}


class MLP(BlockModel):
    """Linear layers of the given `widths` with an activation, and dropout, between them: outputs
    [b, widths[-1]] (no softmax) of samples [b, widths[0]].

    The state dict holds plain `layers.<i>.weight` [widths[i+1], widths[i]] and `layers.<i>.bias`,
    whatever `layers` brings. Block i is layer i with the activation and the dropout before it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        layers: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        assert len(widths) >= 2, widths
        self.widths = tuple(widths)
        layers = layers or WholeLayers()
        self.layers = nn.ModuleList()
        blocks: list[tuple[str, nn.Module]] = []
        spread = WHOLE
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            name, drop = f"layers.{index}", None
            if index > 0 and dropout > 0:
                drop = Dropout(dropout, seed, index - 1, self.context, inputs, spread)
            layer, spread = layers.linear(name, inputs, outputs, spread)
            self.layers.append(layer.to(dtype))
            block = HiddenBlock(ACTIVATIONS[activation], drop, layer) if index > 0 else layer
            blocks.append((name, block))
        self.output_spread = spread
        self._blocks = chain(blocks)  # not registered: the layers' names are the state dict's
        self._seed, self._gain = seed, _GAINS[activation]
        if not self.layers[0].weight.is_meta:
            self.materialize()

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        index = int(block.name.rpartition(".")[2])
        layer = self.layers[index]
        assert isinstance(layer, nn.Linear)
        gain = 1.0 if index == len(self.layers) - 1 else self._gain
        initialise_linear(layer, gain, stream("initial weights", self._seed, index))


class HiddenBlock(nn.Module):
    """Activation and dropout of the layer before, then a linear layer."""

    def __init__(
        self,
        activation: Callable[[torch.Tensor], torch.Tensor],
        dropout: Dropout | None,
        layer: nn.Linear,
    ) -> None:
        super().__init__()
        self._activation = activation
        self._dropout = dropout
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, layer.in_features] -> [b, layer.out_features]; x may be overwritten."""
        x = self._activation(x)
        if self._dropout is not None:
            x = self._dropout(x)
        outputs: torch.Tensor = self.layer(x)
        return outputs


def mlp(
    config: ModelConfig,
    samples: Samples,
    seed: int,
    dtype: torch.dtype,
    layers: LayerFactory,
) -> MLP:
    """The hidden widths are the configuration's, the outer ones the data's. `ConfigError` for an
    activation that there is not, and for more weights than can be held.
    """
    require_one_of("model.activation", config.activation, ACTIVATIONS)
    widths = (samples.num_features, *config.hidden, samples.num_outputs)
    if torch.get_default_device().type != "meta" and layers.num_parts == 1:
        require_mlp_fits(widths, dtype)
    return MLP(widths, config.activation, config.dropout, seed, dtype, layers)
