"""Cross-entropy of classes that ranks share: the logits are never gathered.

Each rank has the logits [b, own classes] of some rows. Of every row the ranks agree on the largest
logit, then on three sums: of exponentials, of the target's logit (which one rank has), and, for
what is classified right, of the classes before the target that reach the largest logit. Words: an
allreduce of b and one of 3 b, where the logits themselves would be b times classes.

Source: Shoeybi et al., "Megatron-LM", 2019, section 3 (fusing the product with the loss).
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dist_ml.comm.communicator import Communicator
from dist_ml.partition import Range


def cross_entropy_sums(
    logits: torch.Tensor, targets: torch.Tensor, classes: Range, comm: Communicator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over rows of -log softmax(logits)[target], differentiable, and how many rows have
    their target as the first largest; the same on all ranks of `comm`.

    logits [..., classes.size] are those of `classes`, targets int64 [...]. Collective.
    """
    loss, correct = _ClassParallel.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, -2), targets.flatten(), classes, comm
    )
    return loss, correct


class _ClassParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, classes: Range, comm: Communicator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b = len(logits)
        largest = torch.full((b,), -torch.inf, dtype=logits.dtype)
        if classes.size:
            largest = logits.max(1).values
        comm.allreduce(largest, "max")
        mine = (targets >= classes.start) & (targets < classes.stop)
        column = (targets - classes.start).clamp(0, max(0, classes.size - 1))
        sums = torch.zeros(3, b, dtype=logits.dtype)
        exponentials = (logits - largest[:, None]).exp_()
        sums[0] = exponentials.sum(1)
        if classes.size:
            at_target = logits.gather(1, column[:, None])[:, 0]
            sums[1] = torch.where(mine, at_target, 0)
            before = torch.arange(classes.start, classes.stop)[None] < targets[:, None]
            sums[2] = ((logits == largest[:, None]) & before).sum(1)
        comm.allreduce(sums)
        total, target_logit, earlier = sums
        loss = (total.log() + largest - target_logit).sum()
        correct = ((target_logit == largest) & (earlier == 0)).sum()
        ctx.save_for_backward(exponentials, total, column, mine)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: torch.Tensor, _correct: Any) -> tuple[torch.Tensor | None, ...]:
        exponentials, total, column, mine = ctx.saved_tensors
        gradient = exponentials / total[:, None]
        if gradient.shape[1]:
            gradient.scatter_add_(1, column[:, None], -mine[:, None].to(gradient.dtype))
        return gradient.mul_(dloss), None, None, None
