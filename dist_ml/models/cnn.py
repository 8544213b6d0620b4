"""A residual convolutional network on images, whose numbers don't depend on how the work is spread
over ranks.

Batch norm would make a sample's outputs, and its gradient, those of its company: of the
micro-batch, and of the ranks that share a batch. Group norm looks at one sample alone, at groups of
channels that are never parted, so that any mesh and any micro-batches come to the same numbers (Wu,
He, "Group normalization", ECCV 2018).
"""

from collections.abc import Sequence

import torch
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.counter_random import stream
from dist_ml.errors import ConfigError
from dist_ml.models.blocks import Block, BlockModel, chain
from dist_ml.models.dropout import Dropout
from dist_ml.models.initialise import initialise_convolution, initialise_linear, initialise_norm
from dist_ml.models.layers import LayerFactory, WholeLayers
from dist_ml.models.residual import Head, ResidualBlock, Stem
from dist_ml.models.samples import Samples
from dist_ml.models.size import require_parameters_fit
from dist_ml.models.spread import WHOLE

_RELU_GAIN = 2**0.5


class CNN(BlockModel):
    """Outputs [b, outputs] (no softmax) of flat images [b, channels * height * width], `shape`
    being (channels, height, width).

    Stage i is `blocks_per_stage` residual blocks of `channels[i]`; the first block of each stage
    but the first halves the image. The state dict holds `stem.…`, `stages.<i>.<j>.…`, `head.…`; a
    block of the model is the stem, a residual block, or the head.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        outputs: int,
        blocks_per_stage: int = 2,
        groups: int = 8,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        layers: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        layers = layers or WholeLayers()
        self._seed = seed
        self.stem = Stem("stem", shape, channels[0], groups, WHOLE, layers)
        spread, before = self.stem.spread, channels[0]
        stages: list[nn.ModuleList] = []
        blocks: list[tuple[str, nn.Module]] = [("stem", self.stem)]
        for i, width in enumerate(channels):
            stages.append(nn.ModuleList())
            for j in range(blocks_per_stage):
                name, stride = f"stages.{i}.{j}", 2 if i > 0 and j == 0 else 1
                block = ResidualBlock(name, before, width, groups, stride, spread, layers)
                stages[i].append(block)
                blocks.append((name, block))
                before = width
        self.stages = nn.ModuleList(stages)
        drop = Dropout(dropout, seed, 0, self.context, before, spread) if dropout > 0 else None
        self.head = Head("head", before, groups, outputs, drop, spread, layers)
        self.output_spread = self.head.spread
        self._blocks = chain([*blocks, ("head", self.head)])
        self.to(dtype)
        if not self.head.linear.weight.is_meta:
            self.materialize()

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        for name, layer in block.module.named_modules(prefix=block.name):
            key = stream(f"initial weights {name}", self._seed)
            if isinstance(layer, nn.Conv2d):
                gain = 1.0 if name == "stem.conv1" else _RELU_GAIN  # all others follow a ReLU
                initialise_convolution(layer, gain, key)
            elif isinstance(layer, nn.GroupNorm):
                initialise_norm(layer)
            elif isinstance(layer, nn.Linear):
                initialise_linear(layer, 1.0, key)


def cnn(
    config: ModelConfig,
    samples: Samples,
    seed: int,
    dtype: torch.dtype,
    layers: LayerFactory,
) -> CNN:
    """`ConfigError` for samples that are no images, for images that become too small to be
    normalised, and for more weights than can be held.
    """
    if len(samples.shape) != 3:
        raise ConfigError(
            "model=cnn takes images [channels, height, width], but a sample of this data is "
            f"{list(samples.shape)}; use data=digits, mnist or cifar, data=arrays with train_x.npy "
            "of shape [samples, channels, height, width] or [samples, height, width], or model=mlp"
        )
    shape = samples.shape[0], samples.shape[1], samples.shape[2]
    _check_groups(config, shape)
    wanted = torch.get_default_device()
    with torch.device("meta"):
        model = CNN(
            shape,
            config.channels,
            samples.num_outputs,
            config.blocks_per_stage,
            config.groups,
            config.dropout,
            seed,
            dtype,
            layers,
        )
    if wanted.type != "meta":
        require_parameters_fit(model, "model.channels or model.blocks_per_stage")
        model.materialize()
    return model


def _check_groups(config: ModelConfig, shape: tuple[int, int, int]) -> None:
    """A single value, less its mean, is zero whatever it was."""
    _, height, width = shape
    for channels in config.channels:
        if channels == config.groups and height == width == 1:
            raise ConfigError(
                f"model.groups={config.groups} leaves one value to normalise, where an image of "
                f"{shape[1]} x {shape[2]} has become a pixel of {channels} channels; use fewer "
                "groups, or fewer stages (model.channels)"
            )
        height, width = -(-height // 2), -(-width // 2)
