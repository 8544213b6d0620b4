"""The residual CNN that a PyTorch user would write."""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, pad


class BareBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut without weights."""

    def __init__(self, before: int, channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.new_channels = stride, channels - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv1(self.relu(self.norm1(x)))
        out = self.conv2(self.relu(self.norm2(out)))
        if self.stride > 1:
            x = avg_pool2d(x, self.stride, ceil_mode=True)
        if self.new_channels:
            x = pad(x, (0, 0, 0, 0, 0, self.new_channels))
        out += x
        return out


class BareCNN(nn.Module):
    """Its state dict has the names of ours. `channels_last`: how weights and images lie."""

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...],
        outputs: int,
        blocks_per_stage: int,
        groups: int,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.shape, first, last = shape, channels[0], channels[-1]
        self.stem = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(shape[0], first, 3, 1, 1, bias=False),
                "norm": nn.GroupNorm(groups, first),
                "conv2": nn.Conv2d(first, first, 3, 1, 1, bias=False),
            }
        )
        stages, before = [], first
        for i, width in enumerate(channels):
            blocks = []
            for j in range(blocks_per_stage):
                blocks.append(BareBlock(before, width, groups, 2 if i > 0 and j == 0 else 1))
                before = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.ModuleDict(
            {"norm": nn.GroupNorm(groups, last), "linear": nn.Linear(last, outputs)}
        )
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.format)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flat images [b, features] -> [b, outputs]."""
        x = x.view(-1, *self.shape).contiguous(memory_format=self.format)
        x = self.stem["conv2"](torch.relu_(self.stem["norm"](self.stem["conv1"](x))))
        x = torch.relu_(self.head["norm"](self.stages(x))).mean((2, 3))
        outputs: torch.Tensor = self.head["linear"](x)
        return outputs
