"""Every collective against what numpy says, for all dtypes, uneven and empty shapes, and any number
of ranks.
"""

import numpy as np
import pytest
import torch

from dist_ml import partition
from dist_ml.comm import mpi, mpi_messages, mpi_transport
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import CommunicationError

pytestmark = pytest.mark.mpi

SUMMABLE = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.int16,
    torch.uint8,
]
MOVABLE = [*SUMMABLE, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", SUMMABLE)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1025])
def test_allreduce_sums_every_dtype(world: Communicator, dtype: torch.dtype, n: int) -> None:
    x = (torch.arange(n) % 5 + world.rank).to(dtype)
    world.allreduce(x)
    ranks = range(world.size)
    assert torch.equal(x, sum(((torch.arange(n) % 5) + rank) for rank in ranks).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(world: Communicator, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(
        world.size, 2_000_001 if dtype == torch.bfloat16 else 4_001, generator=generator
    ).to(dtype)
    x = parts[world.rank].clone()
    world.allreduce(x)
    exact = parts.double().sum(0)
    assert torch.allclose(x.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)
    same = world.allgather_objects(int(x.view(torch.int16).long().sum()))
    assert len(set(same)) == 1


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_ops_blocking_and_not(world: Communicator, op: str) -> None:
    values = np.stack([np.linspace(-1, 1, 9) * (rank + 1) for rank in range(world.size)])
    expected = {
        "sum": values.sum(0),
        "mean": values.mean(0),
        "max": values.max(0),
        "min": values.min(0),
    }[op]
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.from_numpy(values[world.rank].copy()).to(dtype)
        y = x.clone()
        world.allreduce(x, op)  # type: ignore[arg-type]
        request = world.iallreduce(y, op)  # type: ignore[arg-type]
        while not request.test():
            pass
        request.wait()  # a second completion changes nothing
        assert torch.equal(x, y)
        assert np.allclose(
            x.double().numpy(), expected, atol=1e-12 if dtype == torch.float64 else 0.05
        )


def test_bool_is_refused_as_a_sum_and_works_as_any(world: Communicator) -> None:
    flags = torch.tensor([world.rank == 0, False, True])
    with pytest.raises(CommunicationError, match="op='max' for any"):
        world.allreduce(flags)
    world.allreduce(flags, "max")
    assert flags.tolist() == [True, False, True]
    with pytest.raises(CommunicationError, match="rounded"):
        world.allreduce(torch.ones(2, dtype=torch.int32), "mean")


def test_non_contiguous_tensors_land_in_place_or_are_refused(world: Communicator) -> None:
    whole = torch.zeros(4, 6)
    column = whole[:, 2]
    column += world.rank
    world.allreduce(column)
    assert whole[:, 2].tolist() == [sum(range(world.size))] * 4
    assert whole.sum() == 4 * sum(range(world.size))
    array = np.full((3, 4), world.rank)
    world.broadcast(array[:, 1], root=world.size - 1)
    assert (array[:, 1] == world.size - 1).all()
    assert (array[:, 0] == world.rank).all()
    with pytest.raises(CommunicationError, match="not contiguous"):
        world.isend(whole.t(), 0)
    with pytest.raises(CommunicationError, match="list can't"):
        world.allreduce([1.0])  # type: ignore[arg-type]
    with pytest.raises(CommunicationError, match="complex64"):
        world.allreduce(torch.zeros(2, dtype=torch.complex64))


def test_parameters_and_numpy_arrays_are_reduced_where_they_are(world: Communicator) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    world.allreduce(parameter)
    assert parameter.tolist() == [world.size] * 3
    array = np.ones((2, 3), dtype=np.float32)
    world.allreduce(array)
    assert (array == world.size).all()


@pytest.mark.parametrize("n", [0, 1, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_reduce_scatter_then_allgather_is_allreduce(
    world: Communicator, n: int, dtype: torch.dtype
) -> None:
    x = (torch.arange(n) % 7 + world.rank).to(dtype)
    own = torch.empty(partition.counts(n, world.size)[world.rank], dtype=dtype)
    world.reduce_scatter(x, own)
    gathered = torch.empty(n, dtype=dtype)
    world.allgather(own, gathered)
    world.allreduce(x)
    assert torch.equal(gathered, x)


def test_uneven_counts_with_empty_shares(world: Communicator) -> None:
    counts = [3 * rank % 4 for rank in range(world.size)]
    everything = torch.cat([torch.full((count,), float(rank)) for rank, count in enumerate(counts)])
    gathered = torch.full((sum(counts),), -1.0)
    world.iallgather(torch.full((counts[world.rank],), float(world.rank)), gathered, counts).wait()
    assert torch.equal(gathered, everything)
    in_place = torch.where(everything == world.rank, everything, -1.0)
    world.allgather(None, in_place, counts)
    assert torch.equal(in_place, everything)
    own = torch.empty(counts[world.rank])
    world.ireduce_scatter(everything, own, "sum", counts).wait()
    assert torch.equal(own, torch.full_like(own, float(world.rank * world.size)))


def test_alltoall_delivers_uneven_pieces(world: Communicator) -> None:
    send_counts = [(world.rank + 2 * to) % 4 for to in range(world.size)]
    receive_counts = world.exchange_counts(send_counts)
    assert receive_counts == [(source + 2 * world.rank) % 4 for source in range(world.size)]
    send = torch.cat(
        [torch.full((count,), 10 * world.rank + to) for to, count in enumerate(send_counts)]
    )
    receive = torch.full((sum(receive_counts),), -1)
    world.alltoall(send, receive, send_counts, receive_counts)
    assert torch.equal(
        receive,
        torch.cat([torch.full((c,), 10 * r + world.rank) for r, c in enumerate(receive_counts)]),
    )


@pytest.mark.parametrize("dtype", MOVABLE)
def test_broadcast_and_messages_move_every_dtype(world: Communicator, dtype: torch.dtype) -> None:
    pattern = (torch.arange(11) % 2).to(dtype)
    x = pattern.clone() if world.rank == world.size - 1 else torch.zeros(11, dtype=dtype)
    world.broadcast(x, root=world.size - 1)
    assert torch.equal(x, pattern)
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    incoming = torch.zeros(11, dtype=dtype)
    request = world.ireceive(incoming, left, tag=7)
    world.isend(pattern, right, tag=7).wait()
    request.wait()
    assert torch.equal(incoming, pattern)


def test_split_gives_groups_and_none(world: Communicator) -> None:
    half = world.split(world.rank % 2, axis="half")
    assert half is not None
    assert (half.size, half.rank) == (len(range(world.rank % 2, world.size, 2)), world.rank // 2)
    x = torch.tensor([world.rank])
    half.allreduce(x)
    assert x.item() == sum(range(world.rank % 2, world.size, 2))
    assert (world.split(0 if world.rank == 0 else None) is None) == (world.rank > 0)
    assert world.split_by_node().size == world.size
    half.free()


def test_wrong_sizes_and_ranks_are_refused_before_anything_moves(world: Communicator) -> None:
    with pytest.raises(CommunicationError, match="counts ask for"):
        world.allgather(torch.zeros(5), torch.zeros(2), [5] * world.size)
    with pytest.raises(CommunicationError, match="one size a rank"):
        world.reduce_scatter(torch.zeros(5), torch.zeros(5), counts=[5] * (world.size + 1))
    with pytest.raises(CommunicationError, match="use one dtype"):
        world.alltoall(
            torch.zeros(world.size),
            torch.zeros(world.size).double(),
            [1] * world.size,
            [1] * world.size,
        )
    with pytest.raises(CommunicationError, match=f"root={world.size} is not a rank of axis world"):
        world.broadcast(torch.zeros(1), root=world.size)


def test_large_buffers_go_in_pieces(world: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same paths as above 2^31 elements, with a limit of 10."""
    monkeypatch.setattr(mpi_transport, "MAX_COUNT", 10)
    for module in (mpi_transport, mpi_messages):
        monkeypatch.setattr(module, "PIECE", 4)
    n = 23
    x = torch.arange(n) + world.rank
    expected = sum(torch.arange(n) + rank for rank in range(world.size))
    own = torch.empty(partition.counts(n, world.size)[world.rank], dtype=torch.int64)
    world.reduce_scatter(x, own)
    gathered = torch.empty(n, dtype=torch.int64)
    world.allgather(own, gathered)
    assert torch.equal(gathered, expected)
    world.ireduce_scatter(x, own).wait()
    world.iallgather(own, gathered.zero_()).wait()
    assert torch.equal(gathered, expected)
    y = x.clone()
    world.allreduce(y)
    world.iallreduce(z := x.clone()).wait()
    assert torch.equal(y, expected)
    assert torch.equal(z, expected)
    world.broadcast(x, root=world.size - 1)
    assert x[0] == world.size - 1
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    request = world.ireceive(z, left)
    world.isend(y, right).wait()
    request.wait()
    assert torch.equal(z, expected)
    for size in (0, 3, 4, 5, 8, 23):  # the receiver doesn't know which
        sending = world.isend(torch.arange(size) + world.rank, right)
        message = world.receive_message("int64", left)
        sending.wait()
        assert message.tolist() == (torch.arange(size) + left).tolist()


@pytest.mark.skipif(mpi.launched_size() != 2, reason="2 GiB a rank: once is enough, on 2 ranks")
def test_more_than_two_to_the_31_elements(world: Communicator) -> None:
    n = 2**31 + 3
    x = torch.ones(n, dtype=torch.int8)
    world.allreduce(x)
    assert x[0] == x[2**30] == x[-1] == 2
    del x
    receive = torch.zeros(n, dtype=torch.int8)
    counts = [2, n - 2]
    world.allgather(
        torch.full((counts[world.rank],), world.rank + 1, dtype=torch.int8), receive, counts
    )
    assert receive[:3].tolist() == [1, 1, 2]
    assert receive[-1] == 2
