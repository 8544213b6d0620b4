"""What users put around DDP and FSDP2, over our backend, against one process."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dist_ml.comm.communicator import Communicator
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
