"""Sums whose order depends on the number of terms alone: the tree, and its exchange over ranks."""

import itertools

import numpy as np
import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel import tree_exchange
from dist_ml.data_parallel.summation_tree import Node, SummationTree, subtrees
from dist_ml.data_parallel.tree_exchange import TreeExchange
from dist_ml.partition import Range, block

SHARDS = (1, 2, 3, 5, 6, 8, 12, 13)
N = 11


def terms(num: int) -> torch.Tensor:
    """Whose sum depends on the order, float32 [num, N]."""
    random = np.random.default_rng(num)
    values = random.standard_normal((num, N)) * 10 ** random.uniform(-2, 2, (num, N))
    return torch.from_numpy(values.astype(np.float32))


def reference(values: torch.Tensor) -> torch.Tensor:
    """Level by level, neighbours are added."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = torch.stack([pair[0] + pair[1] if len(pair) > 1 else pair[0] for pair in pairs])
    return values[0]


@pytest.mark.parametrize("num", SHARDS)
def test_terms_in_any_order_have_the_sum_of_the_tree(num: int) -> None:
    values = terms(num)
    (root,) = subtrees(Range(0, num), num)
    for seed in range(3):
        tree = SummationTree(num)
        order = np.random.default_rng(seed).permutation(num) if seed else range(num)
        for term in order:
            tree.add(Node(0, int(term)), values[term].clone())
        assert torch.equal(tree.take(root), reference(values))


def test_a_term_is_added_once() -> None:
    tree = SummationTree(4)
    tree.add(Node(0, 1), torch.ones(1))
    with pytest.raises(AssertionError, match="was added before"):
        tree.add(Node(0, 1), torch.ones(1))


def test_few_sums_wait() -> None:
    for num, start, stop in itertools.product((7, 12, 16), range(16), range(17)):
        if not start < stop <= num:
            continue
        nodes = subtrees(Range(start, stop), num)
        spans = [(n.number << n.level, min((n.number + 1) << n.level, num)) for n in nodes]
        assert [term for span in spans for term in range(*span)] == list(range(start, stop))
        assert len(nodes) <= max(1, 2 * int(np.log2(stop - start)))


def exchange(comm: Communicator, num: int) -> tuple[torch.Tensor, int]:
    """The sum, and the words that were sent for it."""
    own = block(num, comm.size, comm.rank)
    tree, summed = SummationTree(num), TreeExchange(comm, num, N)
    for term in range(*own):
        tree.add(Node(0, term), terms(num)[term].clone())
    total = torch.empty(N)
    summed(torch.stack([tree.take(node) for node in summed.own]), total)
    return total, comm.traffic.total().words_sent


@pytest.mark.parametrize(("num", "size"), [(12, p) for p in (1, 2, 3, 4, 6, 12)] + [(13, 13)])
def test_any_number_of_ranks_has_the_same_bits_and_sends_the_words_it_states(
    num: int, size: int
) -> None:
    expected = reference(terms(num))
    for rank, (total, words) in enumerate(run_ranks(size, lambda comm: exchange(comm, num))):
        assert torch.equal(total, expected)
        assert words == tree_exchange.words(N, num, size, rank)
