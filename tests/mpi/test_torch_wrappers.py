"""What users put around DDP and FSDP2, over our backend, against one process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dist_ml import SparseConfig
from dist_ml.comm.communicator import Communicator
from dist_ml.comm_hooks import AllreduceState, SparseState, allreduce_hook, sparse_hook
from dist_ml.errors import DistMLError
from tests.torch_group import batch, default_group, model

pytestmark = pytest.mark.mpi
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def _started(world: Communicator) -> Iterator[None]:
    with default_group(world):
        yield


Batches = list[list[torch.Tensor]]  # of each step


def train(network: torch.nn.Module, batches: Batches, divisor: int = 1) -> dict[str, torch.Tensor]:
    """A step on the sum of losses over each step's batches, divided; then the state."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in batches:
        optimizer.zero_grad()
        for x in step:
            (network(x).square().mean() / divisor).backward()
        optimizer.step()
    return network.state_dict()


def dealt(ranks: Sequence[int], steps: int = STEPS, more: int = 0) -> Batches:
    """One batch a rank in each step; rank r goes on for r times `more` steps."""
    last = steps + more * max(ranks)
    return [
        [batch(step, rank) for rank in ranks if step < steps + more * rank] for step in range(last)
    ]


def test_join_of_uneven_numbers_of_batches(world: Communicator) -> None:
    wrapped = DistributedDataParallel(model())
    with Join([wrapped]):
        state = train(wrapped, dealt([world.rank], more=1))
    plain = train(model(), dealt(range(world.size), more=1), world.size)
    for name, tensor in plain.items():
        torch.testing.assert_close(state[f"module.{name}"], tensor)


def chained(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A user's own: a sum, then something that is done to it."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0] / dist.get_world_size())


def bf16(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Under its own name DDP takes it for GPUs alone."""
    return default_hooks.bf16_compress_hook(state, bucket)


HOOKS: dict[str, tuple[Any, Any, float]] = {  # state, hook, tolerance
    "allreduce": (None, default_hooks.allreduce_hook, 1e-12),
    "bf16": (None, bf16, 2e-3),
    "fp16": (None, default_hooks.fp16_compress_hook, 2e-4),
    "chained": (None, chained, 1e-12),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_ddp(name: str, world: Communicator) -> None:
    state, hook, tolerance = HOOKS[name]
    wrapped = DistributedDataParallel(model())
    wrapped.register_comm_hook(state, hook)
    found = train(wrapped, dealt([world.rank]))
    plain = train(model(), dealt(range(world.size)), world.size)
    for name, tensor in plain.items():
        torch.testing.assert_close(found[f"module.{name}"], tensor, rtol=tolerance, atol=tolerance)


def test_power_sgd_as_a_hook(world: Communicator) -> None:
    """Of full rank it loses nothing; its start is a few plain steps."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=8, start_powerSGD_iter=2)
    wrapped = DistributedDataParallel(model())
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    before = model()(batch(0, 0)).square().mean()
    train(wrapped, dealt([world.rank], steps=5))
    assert wrapped(batch(0, 0)).square().mean() < before
    weight = next(wrapped.parameters()).detach()
    dist.broadcast(first := weight.clone(), 0)
    assert torch.equal(first, weight)


@pytest.mark.parametrize("reduced", [torch.bfloat16, torch.float32], ids=str)
def test_fsdp2_in_mixed_precision(reduced: torch.dtype, world: Communicator) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)
    wrapped, plain = model().float(), model().float()
    for layer in (wrapped[0], wrapped[2], wrapped[3]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(wrapped, mesh=mesh, mp_policy=policy)
    batches = dealt(range(world.size))
    train(wrapped, [[step[world.rank].float()] for step in batches])
    train(plain, [[x.float() for x in step] for step in batches], world.size)
    for own, whole in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own.full_tensor(), whole, rtol=0, atol=2e-3)  # type: ignore[attr-defined]


def test_our_wire_as_a_hook(world: Communicator) -> None:
    wrapped = DistributedDataParallel(model().float())
    wrapped.register_comm_hook(AllreduceState("ring", "bf16"), allreduce_hook)
    batches = [[x.float() for x in step] for step in dealt(range(world.size))]
    found = train(wrapped, [[step[world.rank]] for step in batches])
    plain = train(model().float(), batches, world.size)
    for name, tensor in plain.items():
        torch.testing.assert_close(found[f"module.{name}"], tensor, rtol=0, atol=2e-3)


@pytest.mark.parametrize("allreduce", ["oktopk", "split_allgather"])
def test_our_sparse_exchange_as_a_hook(allreduce: str, world: Communicator) -> None:
    """Of all elements it is the exact mean; of some, what is held back still comes, and all ranks
    stay alike.
    """
    plain = train(model(), dealt(range(world.size)), world.size)
    for density, exact in ((1.0, True), (0.1, False)):
        wrapped = DistributedDataParallel(model(), bucket_cap_mb=0.001)
        sparse = SparseConfig(allreduce, density=density, dense_below=0)
        wrapped.register_comm_hook(SparseState(sparse), sparse_hook)
        found = train(wrapped, dealt([world.rank], steps=STEPS if exact else 20))
        for name, tensor in plain.items():
            own = found[f"module.{name}"]
            dist.broadcast(first := own.clone(), 0)
            assert torch.equal(own, first)
            if exact:
                torch.testing.assert_close(own, tensor)
        assert wrapped(batch(0, 0)).square().mean() < model()(batch(0, 0)).square().mean()


def test_a_bad_gradient_in_a_sparse_hook_is_seen_on_all_ranks(world: Communicator) -> None:
    wrapped = DistributedDataParallel(model())
    sparse = SparseConfig("allgather", density=0.5, dense_below=0)
    wrapped.register_comm_hook(SparseState(sparse), sparse_hook)
    train(wrapped, dealt([world.rank], steps=1))
    wrapped.zero_grad()
    x = batch(1, 0) * (float("nan") if world.rank == 0 else 1.0)
    wrapped(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isnan().all() for p in wrapped.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: SparseState(SparseConfig("oktopk", clip_norm=1.0)),
            "clip_norm=1.0 needs the norm",
        ),
        (lambda: SparseState(SparseConfig("oktopk", densities={"0": 0.1})), "names parameters"),
        (lambda: SparseState(SparseConfig("oktopk", overlap=2)), "overlap=2 isn't needed"),
        (lambda: SparseState(2.0), "density=2.0 must be above 0"),
        (lambda: AllreduceState("ring", "fp8"), "wire=fp8 is not one of"),
        (lambda: AllreduceState("fastest"), "allreduce.name=fastest"),
        (lambda: SparseState(0.01, object()), "these hooks exchange over MPI"),  # type: ignore[arg-type]
    ],
)
def test_hooks_that_cannot_be_made(
    make: Callable[[], object], words: str, world: Communicator
) -> None:
    del world
    with pytest.raises(DistMLError, match=words):
        make()
