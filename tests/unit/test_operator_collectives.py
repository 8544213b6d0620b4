"""Collectives inside autograd: each does what it says and is the adjoint of its way back; sums
don't depend on how tensors lie in memory; cross-entropy of split classes is torch's.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from thread_world import run_ranks
from torch.nn.functional import cross_entropy

from dist_ml.comm.communicator import Communicator
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.cross_entropy import cross_entropy_sums
from dist_ml.partition import block, counts

SIZES = (1, 2, 3, 8)
NUM_ROWS = 7  # uneven parts; of 8 ranks one has none
Tensors = list[torch.Tensor]


def rows(x: torch.Tensor, size: int) -> Tensors:
    """The rows of each rank."""
    return list(x.split(counts(len(x), size)))


class Pair(NamedTuple):
    """`apply` is given the ranks' parts, or one that all hold alike (`same_inputs`); `expected` is
    what each rank then has; with `same_outputs` all go on alike with it.
    """

    apply: Callable[[torch.Tensor, Communicator, list[int]], torch.Tensor]
    expected: Callable[[Tensors], Tensors]
    cut_inputs: bool = False
    same_inputs: bool = False
    cut_outputs: bool = False
    same_outputs: bool = False


PAIRS = {
    "copy": Pair(lambda x, comm, _: collectives.copy(x, comm), lambda xs: xs, same_inputs=True),
    "reduce": Pair(
        lambda x, comm, _: collectives.reduce(x, comm),
        lambda xs: [sum(xs[1:], xs[0])] * len(xs),
        same_outputs=True,
    ),
    "gather": Pair(collectives.gather, lambda xs: [torch.cat(xs)] * len(xs), cut_inputs=True),
    "scatter": Pair(
        collectives.scatter, lambda xs: rows(sum(xs[1:], xs[0]), len(xs)), cut_outputs=True
    ),
    "part": Pair(
        collectives.part, lambda xs: rows(xs[0], len(xs)), same_inputs=True, cut_outputs=True
    ),
    "whole": Pair(
        collectives.whole,
        lambda xs: [torch.cat(xs)] * len(xs),
        cut_inputs=True,
        same_outputs=True,
    ),
}


def drawn(seed: int, size: int, cut: bool, same: bool) -> Tensors:
    """A tensor a rank, of small whole numbers, whose products are exact."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1 if cut or same else size, NUM_ROWS, 2)
    whole = torch.randint(-9, 10, shape, generator=generator).double()
    return rows(whole[0], size) if cut else list(whole.expand(size, -1, -1))


def inner(xs: Tensors, ys: Tensors, same: bool) -> float:
    """<x, y> over all ranks; what they hold alike counts once."""
    pairs = list(zip(xs, ys, strict=True))[: 1 if same else None]
    return sum(float((x * y).sum()) for x, y in pairs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAIRS)
def test_forward_is_as_stated_and_backward_its_adjoint(name: str, size: int) -> None:
    pair = PAIRS[name]
    xs = drawn(1, size, pair.cut_inputs, pair.same_inputs)
    dys = drawn(2, size, pair.cut_outputs, pair.same_outputs)

    def there_and_back(comm: Communicator) -> tuple[torch.Tensor, torch.Tensor]:
        x = xs[comm.rank].clone().requires_grad_()
        y = pair.apply(x, comm, counts(NUM_ROWS, size))
        y.backward(dys[comm.rank])
        assert x.grad is not None
        assert torch.equal(x.detach(), xs[comm.rank])
        return y.detach(), x.grad

    ys, dxs = zip(*run_ranks(size, there_and_back), strict=True)
    for y, expected in zip(ys, pair.expected(xs), strict=True):
        assert torch.equal(y, expected)
    if pair.same_inputs:
        assert all(torch.equal(dx, dxs[0]) for dx in dxs)
    there = inner(list(ys), dys, pair.same_outputs)
    assert there == inner(xs, list(dxs), pair.same_inputs)


def lying(x: torch.Tensor, order: int) -> torch.Tensor:
    """The same numbers, in another order in memory: each rank has its own."""
    dims = [(dim + order) % x.ndim for dim in range(x.ndim)]
    back = [dims.index(dim) for dim in range(x.ndim)]
    return x.permute(dims).contiguous().permute(back)


@pytest.mark.parametrize("shape", [(3, 4), (7, 3, 2), (2, 3, 4, 5), (7, 1, 2, 1)])
def test_sums_do_not_depend_on_the_order_in_memory(shape: tuple[int, ...]) -> None:
    """Images with channels last on one rank and first on another, and transposed matrices."""
    size = 4
    whole = torch.randint(-9, 10, (size, *shape)).double()
    sizes = counts(shape[0], size)

    def sums(comm: Communicator) -> tuple[torch.Tensor, ...]:
        x = lying(whole[comm.rank], comm.rank)
        own = lying(whole.sum(0).split(sizes)[comm.rank], comm.rank)
        return (
            collectives.reduce(x, comm),
            collectives.gather(own, comm, sizes),
            collectives.gather(collectives.scatter(x, comm, sizes), comm, sizes),
        )

    for found in run_ranks(size, sums):
        assert all(torch.equal(each, whole.sum(0)) for each in found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_cross_entropy_of_split_classes_is_torchs(size: int, ties: bool) -> None:
    """Loss, gradient, and which of equal logits counts as the largest; 5 classes, so that of 8
    ranks three have none; logits far from 0.
    """
    num_classes, shape = 5, (6, 3)
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(*shape, num_classes, generator=generator, dtype=torch.float64) + 1e4
    if ties:
        logits = (logits / 4).round()
        assert (logits == logits.max(-1, True).values).sum() > 18
    targets = torch.randint(0, num_classes, shape, generator=generator)
    whole = logits.clone().requires_grad_()
    expected = cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="sum")
    (expected / 4).backward()
    correct = int((logits.argmax(-1) == targets).sum())
    assert 0 < correct < 18

    def split(comm: Communicator) -> tuple[torch.Tensor, int, torch.Tensor]:
        classes = block(num_classes, size, comm.rank)
        own = logits[..., classes.slice].clone().requires_grad_()
        loss, found = cross_entropy_sums(own, targets, classes, comm)
        (loss / 4).backward()
        assert own.grad is not None
        return loss.detach(), int(found), own.grad

    found = run_ranks(size, split)
    for loss, num_correct, _ in found:
        torch.testing.assert_close(loss, expected.detach())
        assert num_correct == correct
    torch.testing.assert_close(torch.cat([gradient for *_, gradient in found], -1), whole.grad)
