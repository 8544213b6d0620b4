"""The loop around a model that a PyTorch user would write with torch's best settings: a fused
optimizer, gradients set to none.
"""

import math
from collections.abc import Iterator
from itertools import cycle

import torch
from torch import nn
from torch.nn import functional


class BareLoop:
    """Steps of `optimizer` on batches of samples held in memory, each sample once an epoch."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        batch_size: int,
    ) -> None:
        self.model, self._optimizer = model, optimizer
        self._inputs, self._targets = inputs, targets
        self._batches = self._deal(batch_size)

    def _deal(self, batch_size: int) -> Iterator[torch.Tensor]:
        order = torch.randperm(len(self._inputs))
        num = math.ceil(len(order) / batch_size)
        return cycle([order[i * batch_size : (i + 1) * batch_size] for i in range(num)])

    def step(self) -> float:
        """One on the next batch; its loss."""
        return self.step_on(next(self._batches))

    def step_on(self, ids: torch.Tensor) -> float:
        """One on these samples: classes, or next tokens, by cross-entropy."""
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self.model(self._inputs[ids])
        loss = functional.cross_entropy(outputs.flatten(0, -2), self._targets[ids].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.item()
