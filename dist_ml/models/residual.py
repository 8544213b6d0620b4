"""The parts of a residual convolutional network: its first layers, its residual blocks, its last
layer.

Layers come in pairs: channels of what the first makes, and the second takes, may lie on several
ranks; what goes from part to part is whole. Norms and activations come before the convolutions, so
that what is added up along the parts is changed by nothing else (He, Zhang, Ren, Sun, "Identity
mappings in deep residual networks", ECCV 2016, section 4).
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, pad

from dist_ml.models.dropout import Dropout
from dist_ml.models.layers import LayerFactory
from dist_ml.models.spread import Spread

KERNEL = 3  # rows and columns of each convolution


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """x [b, channels, h, w] with a pixel's channels next to each other in memory, where CPUs
    convolve faster; no copy of what lies so, as all does between two messages of a pipeline.
    """
    return x.contiguous(memory_format=torch.channels_last)


class Stem(nn.Module):
    """Two convolutions, a norm and ReLU between: flat samples [b, channels * height * width] of
    the given `shape` (channels, height, width) -> [b, channels, height, width].

    Source: He, Zhang, Zhang, Zhang, Xie, Li, "Bag of tricks for image classification", CVPR 2019,
    section 4.1 (ResNet-C), of two layers in place of three.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        channels: int,
        groups: int,
        given: Spread,
        layers: LayerFactory,
    ) -> None:
        super().__init__()
        self._shape, unit = shape, channels // groups
        self.conv1, inner = layers.convolution(
            f"{name}.conv1", shape[0], channels, KERNEL, given, units=(1, unit)
        )
        self.norm = layers.group_norm(f"{name}.norm", groups, channels, inner)
        self.conv2, self.spread = layers.convolution(
            f"{name}.conv2", channels, channels, KERNEL, inner, units=(unit, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = channels_last(x.reshape(len(x), *self._shape))
        hidden = channels_last(self.conv1(images))  # images of one channel lie both ways
        made: torch.Tensor = self.conv2(torch.relu_(self.norm(hidden)))
        return made


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))): [b, channels_in, h, w] -> [b, channels,
    ceil(h / stride), ceil(w / stride)].

    Where `stride` isn't 1, x is averaged over squares of that size; where there are more channels
    than before, the new ones begin at zero. So the shortcut has no weights, and no layer that would
    be the only one of its pair.

    Source: He, Zhang, Ren, Sun, "Deep residual learning", CVPR 2016, section 3.3, option A;
    averages as in "Bag of tricks" (ResNet-D).
    """

    def __init__(
        self,
        name: str,
        channels_in: int,
        channels: int,
        groups: int,
        stride: int,
        given: Spread,
        layers: LayerFactory,
    ) -> None:
        super().__init__()
        self._stride, self._new_channels = stride, channels - channels_in
        unit = channels // groups
        self.norm1 = layers.group_norm(f"{name}.norm1", groups, channels_in, given)
        self.conv1, inner = layers.convolution(
            f"{name}.conv1", channels_in, channels, KERNEL, given, stride, (1, unit)
        )
        self.norm2 = layers.group_norm(f"{name}.norm2", groups, channels, inner)
        self.conv2, made = layers.convolution(
            f"{name}.conv2", channels, channels, KERNEL, inner, units=(unit, 1)
        )
        assert made == given, (name, given, made)  # or x can't be added
        assert not given.features, (name, given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = channels_last(x)
        hidden = self.conv1(torch.relu_(self.norm1(x)))
        change: torch.Tensor = self.conv2(torch.relu_(self.norm2(hidden)))
        if self._stride > 1:
            x = avg_pool2d(x, self._stride, ceil_mode=True)
        if self._new_channels:
            x = pad(x, (0, 0, 0, 0, 0, self._new_channels))
        # under autocast the change may be of fewer bits than x
        return change.add_(x) if change.dtype == x.dtype else change + x


class Head(nn.Module):
    """Norm, ReLU, mean over the image, dropout, and a linear layer: [b, channels, h, w] -> [b,
    outputs].
    """

    def __init__(
        self,
        name: str,
        channels: int,
        groups: int,
        outputs: int,
        dropout: Dropout | None,
        given: Spread,
        layers: LayerFactory,
    ) -> None:
        super().__init__()
        self._dropout = dropout
        self.norm = layers.group_norm(f"{name}.norm", groups, channels, given)
        self.linear, self.spread = layers.linear(f"{name}.linear", channels, outputs, given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu_(self.norm(channels_last(x))).mean((2, 3))
        if self._dropout is not None:
            pooled = self._dropout(pooled)
        outputs: torch.Tensor = self.linear(pooled)
        return outputs
