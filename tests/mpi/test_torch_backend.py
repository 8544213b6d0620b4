"""PyTorch's own parallelism over our communicator, against one process and against definitions."""

import copy
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from dist_ml.comm.communicator import Communicator
from tests.torch_group import batch, default_group, model

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def _started(world: Communicator) -> Iterator[None]:
    with default_group(world):
        yield


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [7, 40_001], ids=["small", "large"])
def test_reductions(n: int, dtype: torch.dtype, world: Communicator) -> None:
    rows = [torch.arange(n).add(3 * rank).remainder(5).to(dtype) for rank in range(world.size)]
    stack = torch.stack(rows).double()
    expected: dict[Any, torch.Tensor] = {
        dist.ReduceOp.SUM: stack.sum(0),
        dist.ReduceOp.MAX: stack.amax(0),
        dist.ReduceOp.MIN: stack.amin(0),
        dist.ReduceOp.PRODUCT: stack.prod(0),
    }
    if dtype.is_floating_point:
        expected[dist.ReduceOp.AVG] = stack.mean(0)
    for op, total in expected.items():
        mine = rows[world.rank].clone()
        dist.all_reduce(mine, op)
        torch.testing.assert_close(mine.double(), total, rtol=1e-2, atol=1e-2)
        dist.reduce(spread := rows[world.rank].clone(), 0, op)
        wanted = total if world.rank == 0 else rows[world.rank].double()
        torch.testing.assert_close(spread.double(), wanted, rtol=1e-2, atol=1e-2)


def test_sums_of_other_kinds(world: Communicator) -> None:
    flags = torch.tensor([world.rank == 0, False])
    dist.all_reduce(flags)
    assert flags.tolist() == [True, False]
    bits = torch.tensor([1 << world.rank])
    dist.all_reduce(bits, dist.ReduceOp.BOR)
    assert bits.item() == (1 << world.size) - 1
    scaled = torch.ones(3)
    dist.all_reduce(scaled, dist._make_nccl_premul_sum(0.5))
    assert scaled.tolist() == [0.5 * world.size] * 3
    wave = torch.full((2, 3), 1 + 2j).T  # complex, and not contiguous
    dist.all_reduce(wave)
    assert wave.tolist() == [[(1 + 2j) * world.size] * 2] * 3
    waves = torch.ones(2 * world.size, dtype=torch.complex64)
    with pytest.raises(Exception, match="isn't built; use SUM or AVG"):
        dist.reduce_scatter_tensor(waves[:2].clone(), waves, dist.ReduceOp.PRODUCT)
    with pytest.raises(Exception, match="would be rounded"):
        dist.all_reduce(torch.ones(2, dtype=torch.int64), dist.ReduceOp.AVG)


def test_what_moves(world: Communicator) -> None:
    rank, size = world.rank, world.size
    mine = torch.full((2, 3), float(rank), dtype=torch.bfloat16)
    parts = [torch.empty(3, 2, dtype=torch.bfloat16).T for _ in range(size)]
    dist.all_gather(parts, mine)
    assert [part.unique().item() for part in parts] == list(range(size))
    whole = torch.empty(2 * size, 3, dtype=torch.bfloat16)
    dist.all_gather_into_tensor(whole, mine)
    assert whole[:, 0].tolist() == [float(r) for r in range(size) for _ in range(2)]
    root = size - 1
    gathered = [torch.empty_like(mine) for _ in range(size)] if rank == root else None
    dist.gather(mine, gathered, root)
    if gathered is not None:
        assert [part[0, 0].item() for part in gathered] == list(range(size))
    dist.scatter(
        own := torch.empty(4),
        [torch.full((4,), 2.0 * r) for r in range(size)] if rank == root else None,
        root,
    )
    assert own.tolist() == [2.0 * rank] * 4
    dist.reduce_scatter_tensor(part := torch.empty(2), torch.arange(2.0 * size))
    assert part.tolist() == [2.0 * rank * size, (2.0 * rank + 1) * size]
    dist.reduce_scatter(part, [torch.full((2,), float(r)) for r in range(size)], dist.ReduceOp.MAX)
    assert part.tolist() == [rank, rank]
    dist.all_to_all_single(swapped := torch.empty(size), torch.full((size,), float(rank)))
    assert swapped.tolist() == list(range(size))
    splits = [r + 1 for r in range(size)]
    uneven = torch.empty(size * (rank + 1))
    dist.all_to_all_single(uneven, torch.arange(float(sum(splits))), [rank + 1] * size, splits)
    assert uneven[: rank + 1].tolist() == [
        float(v) for v in range(sum(splits[:rank]), sum(splits[: rank + 1]))
    ]
    flags = torch.tensor([rank == 1, True])
    dist.broadcast(flags, 0)
    assert flags.tolist() == [False, True]


def test_objects_and_messages(world: Communicator) -> None:
    rank, size = world.rank, world.size
    everybody: list[Any] = [None] * size
    dist.all_gather_object(everybody, {"rank": rank, "text": "x" * rank})
    assert [one["rank"] for one in everybody] == list(range(size))
    told = [{"from": rank}]
    dist.broadcast_object_list(told, src=size - 1)
    assert told == [{"from": size - 1}]
    if size > 1:
        right, left = (rank + 1) % size, (rank - 1) % size
        received = torch.empty(3)
        work = dist.irecv(received, left, tag=5)
        sent = dist.isend(torch.full((3,), float(rank)), right, tag=5)
        for pending in (work, sent):
            assert pending is not None
            pending.wait()
        assert received.tolist() == [float(left)] * 3
        dist.barrier()


@pytest.mark.mpi(min_size=2)
def test_messages_from_any_rank(world: Communicator) -> None:
    if world.rank > 0:
        dist.send(torch.full((2,), float(world.rank)), 0, tag=3)
    else:
        received = torch.empty(2, dtype=torch.float32)
        seen = [dist.recv(received, tag=3) for _ in range(1, world.size)]
        assert sorted(seen) == list(range(1, world.size))
        assert received.tolist() == [float(seen[-1])] * 2
    dist.barrier()


@pytest.mark.mpi(min_size=2)
def test_waits_end_with_the_timeout(world: Communicator) -> None:
    group = dist.new_group(timeout=timedelta(seconds=0.3))
    start = time.monotonic()
    if world.rank == 0:
        with pytest.raises(Exception, match="message was not over within its timeout"):
            dist.recv(torch.empty(1), 1, group=group)
        assert 0.3 < time.monotonic() - start < 5
    world.barrier()
    if world.rank == 1:
        with pytest.raises(Exception, match="barrier was not over within its timeout"):
            dist.barrier(group=group)
    world.barrier()


@pytest.mark.parametrize("op", [dist.ReduceOp.SUM, dist.ReduceOp.AVG], ids=str)
def test_sums_of_sparse_tensors(op: Any, world: Communicator) -> None:
    """Each rank has entries of its own, one twice; the last has none."""
    rows = [[rank, rank + 1, rank] if rank < world.size - 1 else [] for rank in range(world.size)]

    def sparse(places: list[int]) -> torch.Tensor:
        entries = torch.arange(2.0 * len(places)).view(-1, 2)
        return torch.sparse_coo_tensor(
            torch.tensor([places]), entries, (world.size + 1, 2), check_invariants=True
        )

    mine = sparse(rows[world.rank])
    dist.all_reduce(mine, op)
    total = torch.stack([sparse(places).to_dense() for places in rows]).sum(0)
    expected = total / world.size if op == dist.ReduceOp.AVG else total
    torch.testing.assert_close(mine.to_dense(), expected)
    with pytest.raises(Exception, match="to_dense"):
        dist.all_reduce(sparse([0]), dist.ReduceOp.MAX)


@pytest.mark.mpi(min_size=2)
def test_groups_are_made_by_their_members(world: Communicator) -> None:
    half = list(range(world.size // 2 + world.size % 2))
    group = dist.new_group(half)
    if world.rank in half:
        total = torch.ones(2)
        dist.all_reduce(total, group=group)
        assert total.tolist() == [len(half)] * 2


def alone(steps: int, size: int) -> list[float]:
    """Losses, mean over all ranks, of one process."""
    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = sum(plain(batch(step, rank)).square().mean() for rank in range(size)) / size
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        losses.append(float(loss))
    return losses


def trained(wrapped: torch.nn.Module, steps: int, rank: int) -> list[float]:
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = wrapped(batch(step, rank)).square().mean()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, dist.ReduceOp.AVG)
        losses.append(float(mean))
    return losses


def test_ddp(world: Communicator) -> None:
    wrapped = torch.nn.parallel.DistributedDataParallel(model(), bucket_cap_mb=0.001)
    assert trained(wrapped, 5, world.rank) == pytest.approx(alone(5, world.size), rel=1e-10)


def test_fsdp2_and_its_checkpoint(world: Communicator, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import load, save
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    mesh = init_device_mesh("cpu", (world.size,))
    wrapped = copy.deepcopy(model())
    for layer in (wrapped[0], wrapped[2], wrapped[3]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    assert trained(wrapped, 5, world.rank) == pytest.approx(alone(5, world.size), rel=1e-10)
    folder = world.broadcast_object(str(tmp_path))
    state = get_model_state_dict(wrapped)
    save(state, checkpoint_id=folder)
    before = {name: tensor.to_local().clone() for name, tensor in state.items()}
    with torch.no_grad():
        for tensor in state.values():
            tensor.to_local().zero_()
    load(state, checkpoint_id=folder)
    for name, tensor in state.items():
        assert torch.equal(tensor.to_local(), before[name])


def test_tensor_parallelism(world: Communicator) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    plain = model()
    split = parallelize_module(
        copy.deepcopy(plain), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    x = batch(0, 0)
    torch.testing.assert_close(split(x), plain(x))
    split(x).sum().backward()
    plain(x).sum().backward()
    gradient = split[0].weight.grad.full_tensor()  # type: ignore[index]
    torch.testing.assert_close(gradient, plain[0].weight.grad)  # type: ignore[index]
    whole = torch.arange(5.0 * world.size + 1)
    assert torch.equal(distribute_tensor(whole, mesh, [Shard(0)]).full_tensor(), whole)


@pytest.mark.mpi(min_size=2)
def test_pipelining(world: Communicator) -> None:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    layers = [torch.nn.Linear(8, 8).double() for _ in range(world.size)]
    for layer in layers:
        for parameter in layer.parameters():
            dist.broadcast(parameter.data, 0)
    plain = torch.nn.Sequential(*copy.deepcopy(layers))
    device = torch.device("cpu")
    stage = PipelineStage(layers[world.rank], world.rank, world.size, device)
    schedule = Schedule1F1B(stage, 4, loss_fn=lambda out, target: (out - target).square().mean())
    x, target = torch.cat([batch(step, 0)[:4] for step in range(3)]), torch.ones(12, 8).double()
    losses: list[torch.Tensor] = []
    last = world.rank == world.size - 1
    inputs = (x,) if world.rank == 0 else ()
    schedule.step(*inputs, **({"target": target, "losses": losses} if last else {}))
    (plain(x) - target).square().mean().backward()
    gradient = plain[world.rank].weight.grad
    torch.testing.assert_close(layers[world.rank].weight.grad, gradient)


def test_checkpoints_of_a_thread_beside_training(world: Communicator, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import async_save, load

    folder = world.broadcast_object(str(tmp_path))
    wrapped = torch.nn.parallel.DistributedDataParallel(model())
    state = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    saving = async_save(wrapped.state_dict(), checkpoint_id=folder)
    trained(wrapped, 3, world.rank)
    saving.result(60)
    found = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load(found, checkpoint_id=folder)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
