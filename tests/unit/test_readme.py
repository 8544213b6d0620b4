"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import torch

from dist_ml.comm import mpi

README = Path(__file__).parents[2] / "README.md"


def test_the_script_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 2)
    batches = [(inputs[i : i + 10], targets[i : i + 10]) for i in range(0, 40, 10)] * 10
    losses: list[float] = []
    names = {
        "torch": torch,
        "MyModel": lambda: torch.nn.Linear(5, 2),
        "batches": batches,
        "my_share_of": lambda batches, rank, size: batches if (rank, size) == (0, 1) else [],
        "loss_sum": lambda outputs, targets: (outputs - targets).square().sum(),
        "global_batch_size": 10,
        "losses": losses,
    }
    assert not mpi.launched()
    exec(
        code.replace("    optimizer.step()", "    optimizer.step(); losses.append(mean_loss)"),
        names,
    )
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
