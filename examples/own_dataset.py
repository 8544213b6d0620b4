"""Samples from a file of a user's own, read one by one, and the whole trainer on them: validation,
checkpoints, resuming, a report.

dist-ml launch -n 4 python examples/own_dataset.py epochs=5    or mpiexec, or srun
"""

import csv
import random
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset, random_split

import dist_ml


class Table(Dataset[tuple[torch.Tensor, int]]):
    """Rows of a file of comma-separated values, the class in the last column."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            self.rows = list(csv.reader(file))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        *features, label = self.rows[index]
        return torch.tensor([float(each) for each in features]), int(label)


path = Path(tempfile.mkdtemp()) / "samples.csv"  # in place of your own file
draw = random.Random(0)
with path.open("w", newline="") as file:
    for _ in range(600):
        row = [draw.gauss(0, 1) for _ in range(6)]
        csv.writer(file).writerow([*row, int(row[0] * row[1] > 0)])

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
training, test = random_split(Table(path), [500, 100], torch.Generator().manual_seed(0))
summary = dist_ml.fit(model, (training, test), overrides=sys.argv[1:])
