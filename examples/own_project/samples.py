"""The project's samples: points of the plane, and in which of three rings each lies."""

import torch
from torch.utils.data import Dataset, random_split


class Rings(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, num_samples: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.points = 3 * torch.rand(num_samples, 2, generator=generator) - 1.5

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        point = self.points[index]
        return point, int(min(2, 2 * point.norm()))


def rings() -> list[Dataset[tuple[torch.Tensor, int]]]:
    """Samples to train on, and to test on."""
    return list(random_split(Rings(1500), [1200, 300], torch.Generator().manual_seed(2)))
