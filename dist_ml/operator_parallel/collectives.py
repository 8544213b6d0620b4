"""Collectives inside torch's autograd: each passes activations one way and gradients the other.

    copy      the same on all ranks          gradients are summed       allreduce
    reduce    summed over the ranks          the same gradient          allreduce
    gather    all rows of all ranks          summed, own rows kept      allgather, reduce-scatter
    scatter   summed, own rows kept          all rows of all ranks      reduce-scatter, allgather
    part      own rows of what all hold      all rows of all ranks      -, allgather
    whole     all rows of all ranks          own rows                   allgather, -

Each is the adjoint of its way back: <F x, y> = <x, F* y>, where what all ranks hold alike counts
once. Every rank calls them in the same order, forward and backward. `sizes` are the rows (dimension
0) of each rank. Tensors on the meta device only get their shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from dist_ml.comm.communicator import Communicator

Move: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class _Pair(torch.autograd.Function):
    """`there` forward, `back` backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: Move, back: Move) -> torch.Tensor:
        ctx.back = back
        y = there(x)
        return x.view_as(x) if y is x else y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.back(gradients[0]), None, None


def copy(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """x, which all ranks hold. Words: 2n(P-1)/P backward."""
    return _apply(x, comm, _same, lambda dy: summed(dy, comm))


def reduce(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """The sum of the ranks' x. Words: 2n(P-1)/P forward."""
    return _apply(x, comm, lambda x: summed(x, comm), _same)


def gather(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all ranks, of which each goes on with its own part of what is made of them.
    Words: the own rows (P-1) times forward, the other ranks' rows backward.
    """
    return _apply(x, comm, lambda x: gathered(x, comm, sizes), lambda dy: kept(dy, comm, sizes))


def scatter(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """This rank's rows of the sum of the ranks' x. Words: `gather`'s, the other way round."""
    return _apply(x, comm, lambda x: kept(x, comm, sizes), lambda dy: gathered(dy, comm, sizes))


def part(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """This rank's rows of x, which all ranks hold. Words: the own rows (P-1) times backward."""
    return _apply(x, comm, lambda x: own(x, comm, sizes), lambda dy: gathered(dy, comm, sizes))


def whole(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all ranks, which all go on alike with them. Words: the own rows (P-1) times
    forward.
    """
    return _apply(x, comm, lambda x: gathered(x, comm, sizes), lambda dy: own(dy, comm, sizes))


def summed(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """The sum of the ranks' x, as a new tensor."""
    if x.is_meta:
        return x
    if x.ndim == 4:  # images: with their channels last, on all ranks, however they lie here
        total = x.detach().clone(memory_format=torch.channels_last)
        comm.allreduce(total.permute(0, 2, 3, 1))
        return total
    total = x.detach().clone(memory_format=torch.contiguous_format)
    comm.allreduce(total)
    return total


def gathered(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all ranks, in their order."""
    if comm.size == 1:
        return x
    result = x.new_empty((sum(sizes), *x.shape[1:]))
    if not x.is_meta:
        words = x[:1].numel() if len(x) else result[:1].numel()
        comm.allgather(x.detach().contiguous(), result, [size * words for size in sizes])
    return result


def kept(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """This rank's rows of the sum of the ranks' x."""
    if comm.size == 1:
        return x
    result = x.new_empty((sizes[comm.rank], *x.shape[1:]))
    if not x.is_meta:
        words = x[:1].numel()
        comm.reduce_scatter(
            x.detach().contiguous(), result, counts=[size * words for size in sizes]
        )
    return result


def own(x: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
    """This rank's rows of x, as a new tensor."""
    start = sum(sizes[: comm.rank])
    return x.detach()[start : start + sizes[comm.rank]].clone()


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _apply(x: torch.Tensor, comm: Communicator, there: Move, back: Move) -> torch.Tensor:
    if comm.size == 1:
        return x
    result: torch.Tensor = _Pair.apply(x, there, back)  # type: ignore[no-untyped-call]
    return result
