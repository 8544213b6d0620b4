"""The loop that a PyTorch user would write, which our step is compared with; alone in a process:
`python -m dist_ml.bench.bare_step ARGUMENTS`.

In this process it shares OpenMP settings and threads with our step. In a process of its own, with
none of the variables that our launcher sets, it is as a user who knows nothing of us would run it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from dist_ml.measure.compare import own_seconds

BARE, FUSED, ALONE = "bare torch", "bare torch, fused SGD", "bare torch, a process of its own"
_LIMIT_SECONDS = 300.0
# What a launcher may have set for its ranks, and a user's own shell has not.
_THREADS = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_")


@dataclass(frozen=True)
class BareStep:
    """What is trained: an MLP with ReLU and cross-entropy, by SGD."""

    widths: tuple[int, ...]  # features and classes included
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    fused: bool  # torch's fused SGD, and gradients set to none


def steps_of(step: BareStep, x: torch.Tensor, y: torch.Tensor, steps: int) -> Callable[[], float]:
    """Seconds a step of `steps` together, on samples held in memory; x: (samples, features)."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(step.widths):
        layers += [torch.nn.Linear(inputs, outputs, dtype=x.dtype), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(
        model.parameters(),
        step.lr,
        step.momentum,
        weight_decay=step.weight_decay,
        fused=step.fused or None,
    )
    loss_function = torch.nn.CrossEntropyLoss()
    order = torch.randperm(len(x))
    count = 0

    def one() -> None:
        nonlocal count
        start = count * step.batch_size % max(1, len(x) - step.batch_size + 1)
        ids = order[start : start + step.batch_size]
        count += 1
        optimizer.zero_grad(set_to_none=True)
        loss = loss_function(model(x[ids]), y[ids])
        loss.backward()
        optimizer.step()
        loss.item()

    return lambda: own_seconds(one, steps)


def alone(step: BareStep, num_samples: int, steps: int) -> Callable[[], float]:
    """The same in a process of its own, started for each measurement, on random samples."""
    arguments = json.dumps({"step": asdict(step), "num_samples": num_samples, "steps": steps})

    def seconds() -> float:
        done = subprocess.run(
            [sys.executable, "-m", __name__, arguments],
            env=plain_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=True,
        )
        return float(done.stdout)

    return seconds


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what sets threads."""
    return {name: value for name, value in environment.items() if not name.startswith(_THREADS)}


def main(argv: Sequence[str]) -> None:
    """Print the seconds of a step, after one measurement that warms up."""
    arguments = json.loads(argv[0])
    widths = tuple(arguments["step"].pop("widths"))
    step = BareStep(widths, **arguments["step"])
    x = torch.rand(arguments["num_samples"], widths[0])
    y = torch.arange(arguments["num_samples"]) % widths[-1]
    seconds = steps_of(step, x, y, arguments["steps"])
    seconds()
    sys.stdout.write(f"{seconds()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
