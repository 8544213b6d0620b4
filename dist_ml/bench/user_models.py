"""Models as users write them, without anything of ours: what `DataParallel` and DDP are compared
on.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

_VOCABULARY, _WIDTH, _LENGTH, _CLASSES = 8192, 512, 16, 10


class UserModel(NamedTuple):
    """How one is made, and its inputs and targets: so many random samples."""

    build: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    has_unused: bool = False  # parameters that no forward pass reaches


class Convolutional(nn.Module):
    """Convolutions with batch statistics (buffers) and two wide layers: 6.4 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classes = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 64, 1536), nn.ReLU(), nn.Linear(1536, _CLASSES)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        classes: torch.Tensor = self.classes(self.features(images))
        return classes


class TiedLanguageModel(nn.Module):
    """As language models in libraries look: output weights are the embedding's, positions are a
    buffer, and a pooler is there that this task never calls. 6.8 M parameters.
    """

    positions: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, _WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                _WIDTH, 8, 2 * _WIDTH, 0.0, batch_first=True, norm_first=True
            )
            for _ in range(1)
        )
        self.pooler = nn.Linear(_WIDTH, _WIDTH)
        self.head = nn.Linear(_WIDTH, _VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(_LENGTH).float())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.positions[:, None] / _LENGTH
        for layer in self.layers:
            hidden = layer(hidden)
        scores: torch.Tensor = self.head(hidden).flatten(0, 1)
        return scores


def _perceptron() -> nn.Module:
    widths = (1024, 3072, 3072, 3072, 1024)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _features(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.randint(1024, (count,), generator=generator)
    return torch.randn(count, 1024, generator=generator), targets


def _images(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.randint(_CLASSES, (count,), generator=generator)
    return torch.randn(count, 3, 32, 32, generator=generator), targets


def _tokens(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(_VOCABULARY, (count, _LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].flatten()


USER_MODELS: dict[str, UserModel] = {
    "perceptron": UserModel(_perceptron, _features),
    "cnn": UserModel(Convolutional, _images),
    "tied": UserModel(TiedLanguageModel, _tokens, has_unused=True),
}
