"""Losses of PyTorch's own parallelism over our backend are those over gloo."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import async_save, load
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from dist_ml.bench.candidates import join_gloo
from dist_ml.comm.communicator import Communicator
from dist_ml.process_group.process_group import NAME
from tests.torch_group import batch, default_group, model

pytestmark = pytest.mark.mpi
STEPS = 4
Example = Callable[[Communicator, str], list[float]]


def steps(network: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> list[float]:
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = network(batch(step, rank).float()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)


def fully_sharded(world: Communicator) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (world.size,))
    network = model().float()
    for part in (network[0], network[2], network[3], network):  # type: ignore[index]
        # gloo's average is a sum
        fully_shard(part, mesh=mesh).set_force_sum_reduction_for_comms(True)
    return network


def ddp(world: Communicator, _: str) -> list[float]:
    network = DistributedDataParallel(model().float())
    return steps(network, sgd(network), world.rank)


def fsdp2(world: Communicator, _: str) -> list[float]:
    network = fully_sharded(world)
    return steps(network, sgd(network), world.rank)


def dtensor(world: Communicator, _: str) -> list[float]:
    mesh = init_device_mesh("cpu", (world.size,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    network = parallelize_module(model().float(), mesh, plan)
    return steps(network, sgd(network), 0)


def checkpoints(world: Communicator, folder: str) -> list[float]:
    """Saved on a thread, loaded, and trained on; gloo can't do it beside training."""
    network = fully_sharded(world)
    optimizer = sgd(network)
    before = steps(network, optimizer, world.rank)
    weights, state = get_state_dict(network, optimizer)
    async_save({"model": weights, "optimizer": state}, checkpoint_id=folder).result(60)
    other = fully_sharded(world)
    fresh = sgd(other)
    steps(other, fresh, world.rank)
    weights, state = get_state_dict(other, fresh)
    load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(other, fresh, model_state_dict=weights, optim_state_dict=state)
    return before + steps(other, fresh, world.rank)


def pipelining(world: Communicator, _: str) -> list[float]:
    torch.manual_seed(world.rank)
    layer = torch.nn.Linear(8, 8)
    stage = PipelineStage(layer, world.rank, world.size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, 4, loss_fn=lambda out, target: (out - target).square().mean())
    optimizer, found = sgd(layer), []
    last = world.rank == world.size - 1
    for step in range(STEPS):
        x = torch.cat([batch(step, part)[:4] for part in range(3)]).float()
        losses: list[torch.Tensor] = []
        optimizer.zero_grad()
        inputs = (x,) if world.rank == 0 else ()
        schedule.step(*inputs, **({"target": torch.ones(12, 8), "losses": losses} if last else {}))
        optimizer.step()
        found += [loss.item() for loss in losses]
    return found


EXAMPLES: dict[str, Example] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "dtensor": dtensor,
    "checkpoints": checkpoints,
    "pipelining": pipelining,
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", EXAMPLES)
def test_losses_are_those_over_gloo(name: str, world: Communicator, tmp_path: Path) -> None:
    folder = Path(world.broadcast_object(str(tmp_path)))
    with default_group(world):
        ours = EXAMPLES[name](world, str(folder / NAME))
    join_gloo(world)
    theirs = EXAMPLES[name](world, str(folder / "gloo"))
    dist.destroy_process_group()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert len(set(ours)) == len(ours)
