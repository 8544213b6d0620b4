"""Checked mode, meshes, agreement on errors, and the ledger's formulas."""

import numpy as np
import pytest
import torch

from dist_ml import partition
from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.errors import CommunicationError, DataError, MeshError

pytestmark = pytest.mark.mpi


@pytest.fixture
def checked(world: Communicator) -> Communicator:
    return world.with_checks()


@pytest.mark.mpi(min_size=2)
def test_checked_mode_names_both_sides(checked: Communicator) -> None:
    x = torch.zeros(3 if checked.rank == 0 else 4)
    with pytest.raises(
        CommunicationError,
        match=r"rank 0 calls allreduce sum .*count=3 at mpi/test_.*rank 1 calls .*count=4",
    ):
        checked.allreduce(x)
    with pytest.raises(CommunicationError, match=r"allreduce .* but rank 1 calls broadcast"):
        checked.allreduce(x) if checked.rank == 0 else checked.broadcast(x)
    with pytest.raises(CommunicationError, match=r"root=0.*root=1"):
        checked.broadcast(x, root=min(1, checked.rank))
    with pytest.raises(CommunicationError, match=r"dtype=float32.*dtype=float64"):
        checked.allreduce(
            torch.zeros(3, dtype=torch.float32 if checked.rank == 0 else torch.float64)
        )
    with pytest.raises(CommunicationError, match=r"allreduce.*barrier"):
        checked.allreduce(x) if checked.rank == 0 else checked.barrier()
    checked.allreduce(x := torch.ones(2))  # still in step
    assert x[0] == checked.size


def test_checked_mode_lets_right_calls_through(checked: Communicator) -> None:
    mesh = Mesh(checked, {"data": None})
    comm = mesh.comm("data")
    comm.allgather(
        torch.ones(comm.rank), torch.zeros(sum(range(comm.size))), list(range(comm.size))
    )
    comm.alltoall(torch.ones(comm.size), torch.ones(comm.size), [1] * comm.size, [1] * comm.size)
    assert comm.allgather_objects(comm.rank) == list(range(comm.size))


def test_mesh_communicators_reach_exactly_their_axis(world: Communicator) -> None:
    for data in (size for size in range(1, world.size + 1) if world.size % size == 0):
        mesh = Mesh(world, {"data": data, "operator": None})
        operator = mesh.comm("operator")
        assert (mesh.comm("data").size, operator.size) == (data, world.size // data)
        mine = mesh.coordinates["data"] * operator.size + operator.rank
        assert mesh.world.rank == mine
        ids = torch.tensor([mine])
        operator.allreduce(ids)
        first = mesh.coordinates["data"] * operator.size
        assert ids.item() == sum(range(first, first + operator.size))
    with pytest.raises(
        MeshError,
        match=f"data=1 x pipeline=1 x operator=7 = 7 ranks, but {world.size} were started",
    ):
        Mesh(world, {"data": 1, "operator": 7})


def test_one_ranks_error_is_raised_by_all(world: Communicator) -> None:
    def work() -> None:
        with raise_on_all_ranks(world):
            if world.rank == world.size - 1:
                raise DataError("the file is gone")

    with pytest.raises(DataError, match="the file is gone") as caught:
        work()
    assert caught.value.agreed
    assert str(caught.value).startswith("rank " if world.size > 1 else "the file")
    with raise_on_all_ranks(world):
        pass


@pytest.mark.parametrize("n", [0, 1, 13])
def test_ledger_follows_the_formulas_and_conserves_words(world: Communicator, n: int) -> None:
    size, own = world.size, partition.counts(n, world.size)[world.rank]
    earlier = world.traffic.snapshot()
    world.allreduce(torch.zeros(n))
    world.reduce_scatter(torch.zeros(n), torch.zeros(own))
    world.allgather(torch.zeros(own), torch.zeros(n))
    world.broadcast(torch.zeros(n))
    counts = list(range(size))
    world.alltoall(
        torch.zeros(sum(counts)), torch.zeros(size * world.rank), counts, [world.rank] * size
    )
    entries = {collective: tally for (_, collective), tally in world.traffic.since(earlier).items()}
    if size == 1:
        assert not entries
        return
    sent = {
        name: (tally.words_sent, tally.words_received, tally.messages)
        for name, tally in entries.items()
    }
    both = n - own + own * (size - 1)
    assert sent["allreduce"] == (both, both, 2 * (size - 1))
    assert sent["reduce_scatter"] == (n - own, own * (size - 1), size - 1)
    assert sent["allgather"] == (own * (size - 1), n - own, size - 1)
    assert sent["broadcast"] == ((n * (size - 1), 0, size - 1) if world.rank == 0 else (0, n, 0))
    assert sent["alltoall"][:2] == (sum(counts) - world.rank, world.rank * (size - 1))
    totals = torch.tensor(
        [[tally.words_sent, tally.words_received] for _, tally in sorted(entries.items())]
    )
    world.allreduce(totals)
    assert torch.equal(totals[:, 0], totals[:, 1])


@pytest.mark.mpi(min_size=2)
def test_messages_are_counted_and_labelled(world: Communicator) -> None:
    earlier = world.traffic.snapshot()
    x = np.zeros(5, dtype=np.float64)
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    with world.traffic.labelled("ring"):
        request = world.ireceive(np.zeros(5), left)
        world.send(x, right)
        request.wait()
    tally = world.traffic.since(earlier)[("world", "ring")]
    assert (tally.words_sent, tally.words_received, tally.messages, tally.bytes_sent) == (
        5,
        5,
        1,
        40,
    )


def test_seconds_are_taken_only_when_asked(world: Communicator) -> None:
    world.traffic.timing = True
    try:
        world.allreduce(torch.zeros(1000))
        seconds = world.traffic.snapshot().get(("world", "allreduce"))
        assert seconds is None or seconds.seconds > 0
    finally:
        world.traffic.timing = False
