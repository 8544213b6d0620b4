"""Reductions in memory that the ranks of a node share, alone and below messages between nodes: on
threads that share their memory as processes do, on nodes of equal, unequal and interleaved ranks.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from thread_world import run_ranks

from dist_ml.bench.counting_transport import counted
from dist_ml.comm.allreduce import family, hierarchical
from dist_ml.comm.allreduce.hierarchical import Hierarchical
from dist_ml.comm.allreduce.native import naive
from dist_ml.comm.allreduce.shared_memory import SharedMemory
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.shared_buffer import SharedBuffer
from dist_ml.comm.traffic import allreduce_words
from dist_ml.errors import CommunicationError, ConfigError, MachineError
from dist_ml.partition import block

ONE_NODE = {"1": [0], "2": [0, 0], "3": [0] * 3}  # each number is compiled
NODES = {
    **ONE_NODE,
    "2+2": [0, 0, 1, 1],
    "3+2": [0, 0, 0, 1, 1],
    "1+3+2": [0, 1, 1, 1, 2, 2],
    "interleaved": [0, 1, 0, 1],
    "1+1+1+1": [0, 1, 2, 3],
}
CASES = [("shared_memory", nodes) for nodes in ONE_NODE]
CASES += [("hierarchical", nodes) for nodes in NODES]
SIZES = [0, 1, 2, 5, 64, 1001]


@pytest.fixture(autouse=True)
def long_shares_are_64_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways between nodes are taken by vectors of a size for tests."""
    monkeypatch.setattr(hierarchical, "RING_FROM_BYTES", 64)


def vector(rank: int, n: int, dtype: str = "float64") -> torch.Tensor:
    """Whole numbers, whose sums are exact in any order."""
    return torch.from_numpy((np.arange(n) % 50 + rank).astype(dtype))


def exact(ranks: int, n: int) -> torch.Tensor:
    return torch.stack([vector(rank, n) for rank in range(ranks)]).sum(0)


@pytest.mark.parametrize(("name", "nodes"), CASES)
@pytest.mark.parametrize("op", ["sum", "mean"])
def test_sums_are_exact_in_memory_of_theirs_and_of_the_callers(
    name: str, nodes: str, op: str
) -> None:
    size = len(NODES[nodes])

    def body(comm: Communicator) -> list[bytes]:
        reduce = family.make(name, comm)
        found = []
        for n in SIZES:
            for dtype in (torch.float32, torch.float64):
                inside = reduce.allocate(n, dtype)
                assert not inside.any()
                outside = torch.empty(n, dtype=dtype)
                for x in (inside, outside, inside):  # the third finds what the first has kept
                    x.copy_(vector(comm.rank, n))
                    reduce(x, op)  # type: ignore[arg-type]
                    expected = exact(size, n) / (size if op == "mean" else 1)
                    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=0)
                    found.append(x.numpy().tobytes())
        reduce.free()
        return found

    results = run_ranks(size, body, NODES[nodes])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("name", "nodes"), CASES)
def test_parts_of_one_vector_under_way_together_end_in_any_order(name: str, nodes: str) -> None:
    size = len(NODES[nodes])

    def body(comm: Communicator) -> None:
        reduce = family.make(name, comm)
        whole = reduce.allocate(300, torch.float64)
        for repeat in range(3):
            whole.copy_(vector(comm.rank + repeat, 300))
            parts = [block(300, 4, number) for number in range(4)]
            requests = [reduce.start(whole[part.slice]) for part in parts[:3]]
            reduce(whole[parts[3].slice])  # after the first time it is known, and others under way
            for number in [2, 0, 1] if comm.rank % 2 else [1, 2, 0]:
                requests[number].wait()
            assert torch.equal(whole, exact(size, 300) + size * repeat)

    run_ranks(size, body, NODES[nodes])


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_words_between_nodes_are_those_stated_and_seen(nodes: str, wire: str) -> None:
    size, num_nodes = len(NODES[nodes]), len(set(NODES[nodes]))

    def body(comm: Communicator) -> list[int]:
        own, seen = counted(comm)
        reduce = family.make("hierarchical", own, wire)  # type: ignore[arg-type]
        x = {n: reduce.allocate(n, torch.float32) for n in SIZES}
        sent = []
        for n in SIZES:
            before = seen.words()
            reduce(x[n].copy_(vector(comm.rank, n)))
            moved = tuple(b - a for a, b in zip(before, seen.words(), strict=True))
            assert moved == tuple(reduce.words(n, 4)), n
            sent.append(moved[0])
        ledger = own.traffic.total()
        assert (ledger.words_sent, ledger.messages) == (seen.sent, seen.messages)
        return sent

    for n, words in zip(SIZES, zip(*run_ranks(size, body, NODES[nodes]), strict=True), strict=True):
        # a node sends 2n(H-1)/H in all, however many ranks it has
        assert sum(words) == pytest.approx(2 * n * (num_nodes - 1), abs=8 * size)


def test_short_shares_take_few_messages_and_long_ones_go_around_a_ring() -> None:
    def body(comm: Communicator) -> list[int]:
        own, seen = counted(comm)
        reduce = Hierarchical(own)
        messages = []
        for n in (15, 1001):
            before = seen.messages
            reduce(vector(comm.rank, n, "float32"))
            messages.append(seen.messages - before)
        return messages

    nodes = [0, 1, 2, 3]
    assert run_ranks(4, body, nodes) == [[2 * 2, 2 * 3]] * 4  # 2 log H, and 2 (H - 1)


@pytest.mark.parametrize("ranks", [1, 3])
def test_shared_memory_enters_the_direct_algorithms_words_and_no_message(ranks: int) -> None:
    def body(comm: Communicator) -> None:
        reduce = SharedMemory(comm)
        x = reduce.allocate(100, torch.float32)
        for _ in range(3):
            reduce(x)
        tally = comm.traffic.total()
        own = block(100, ranks, comm.rank).size
        sent = 3 * allreduce_words(100, own, ranks).sent if ranks > 1 else 0
        assert (tally.words_sent, tally.bytes_sent, tally.messages) == (sent, 4 * sent, 0)

    run_ranks(ranks, body)


def test_narrow_wires_round_alike_on_all_nodes_and_refuse_float64() -> None:
    def body(comm: Communicator) -> np.ndarray:
        reduce = Hierarchical(comm, "fp16")
        x = torch.from_numpy(np.random.default_rng(comm.rank).standard_normal(301)).float()
        sums = x.double()
        comm.allreduce(sums)
        reduce(x)
        torch.testing.assert_close(x.double(), sums, rtol=0, atol=2**-11 * 5 * 4)
        with pytest.raises(ConfigError, match="wire=fp16 rounds float32 gradients"):
            reduce(torch.zeros(3, dtype=torch.float64))
        return x.numpy()

    results = run_ranks(5, body, NODES["3+2"])
    assert all(np.array_equal(result, results[0]) for result in results)


def test_shared_memory_over_several_nodes_is_refused_with_what_would_do() -> None:
    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError) as caught:
            SharedMemory(comm)
        return str(caught.value)

    assert run_ranks(3, body, [0, 0, 1])[2] == (
        "allreduce=shared_memory needs all 3 ranks of axis data on one node, but this one has 1; "
        "use allreduce=hierarchical"
    )


@pytest.mark.parametrize("name", ["shared_memory", "hierarchical"])
def test_in_checked_mode_a_rank_that_reduces_something_else_is_told(name: str) -> None:
    def body(comm: Communicator) -> str:
        reduce = family.make(name, comm.with_checks())
        same = reduce.allocate(4, torch.float32)
        reduce(same)
        with pytest.raises(CommunicationError) as caught:
            reduce(torch.zeros(4 + comm.rank))
        return str(caught.value)

    for words in run_ranks(2, body):
        assert f"rank 0 calls allreduce sum by {name} dtype=float32 count=4 at" in words
        assert f"rank 1 calls allreduce sum by {name} dtype=float32 count=5 at" in words


class TestSharedBuffer:
    def test_a_tensor_is_found_where_it_lies_and_only_there(self) -> None:
        def body(comm: Communicator) -> None:
            shared = SharedBuffer(comm, 10, torch.float32)
            own = shared.own.numpy()
            assert shared.offset_of(own) == 0
            assert shared.offset_of(own[3:10]) == 3
            assert shared.offset_of(np.zeros(3, np.float32)) is None
            assert shared.offset_of(own.view(np.int32)) is None
            beyond = shared.copies[comm.rank, :11]
            assert shared.offset_of(beyond) is None
            assert shared.offset_of(own.view(np.uint8)[2:10].view(np.float32)) is None

        run_ranks(3, body)

    def test_what_one_rank_writes_the_others_see_in_its_row(self) -> None:
        def body(comm: Communicator) -> np.ndarray:
            shared = SharedBuffer(comm, 3, torch.float64)
            shared.own.fill_(comm.rank + 1)
            comm.barrier()
            seen = shared.copies[:, :3].copy()
            assert [row.ctypes.data % 4096 for row in shared.copies] == [0, 0, 0]
            comm.barrier()
            return seen

        for seen in run_ranks(3, body):
            assert seen.tolist() == [[1] * 3, [2] * 3, [3] * 3]

    def test_reductions_are_numbered_from_one(self) -> None:
        def body(comm: Communicator) -> list[int]:
            shared = SharedBuffer(comm, 1, torch.float32)
            return [shared.next_epoch() for _ in range(3)]

        assert run_ranks(1, body) == [[1, 2, 3]]

    def test_other_dtypes_and_too_little_room_are_told_on_all_ranks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dist_ml.comm.shared_buffer.free_bytes", lambda: 2**20)

        def body(comm: Communicator) -> tuple[str, bool]:
            with pytest.raises(CommunicationError, match=r"not torch\.int32; use allreduce=native"):
                SharedBuffer(comm, 1, torch.int32)
            with pytest.raises(MachineError) as caught:
                SharedBuffer(comm, 500_000, torch.float32)
            return str(caught.value), caught.value.agreed

        found = run_ranks(3, body)
        assert found == [found[0]] * 3
        assert "for 3 ranks, but only 1.0 MiB are free" in found[0][0]


def reductions(comm: Communicator, name: str) -> np.ndarray:
    x = np.random.default_rng(comm.rank).standard_normal(37)
    if name == "naive":
        naive(comm, x, "mean")
    else:
        family.make(name, comm)(x, "mean")
    return x


@pytest.mark.parametrize("name", ["naive", "native", "ring", "hierarchical", "shared_memory"])
def test_the_naive_reference_is_the_mean_in_float64_and_so_are_the_others(name: str) -> None:
    parts: Sequence[np.ndarray] = [
        np.random.default_rng(rank).standard_normal(37) for rank in range(3)
    ]
    for found in run_ranks(3, lambda comm: reductions(comm, name)):
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-13, atol=1e-15)
