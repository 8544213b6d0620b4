"""The ranks' part of `dist-ml bench operator`: steps of one MLP, from equal weights on the same
batches, by each candidate in turn.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dist_ml.bench.candidates import ORDINARY, Candidates
from dist_ml.bench.configured import from_arguments, on_arrays
from dist_ml.bench.tensor_parallel import sgd_step, tensor_parallel_mlp
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.measure.compare import compare
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

ONE_RANK = "ours, one rank"
DTENSOR, DTENSOR_SHARDED = "DTensor on gloo", "DTensor on gloo, rows sharded"
PRODUCTS = "a rank's products alone"
ALLREDUCES = {"native": "allreduce, MPI's", ORDINARY: "allreduce, shared memory"}
GLOO = "allreduce, gloo"
_LOOK_SECONDS = 1e-3

Step = Callable[[], float]


def ours(layout: str) -> str:
    """The candidate that trains with this layout."""
    return f"ours, {layout}"


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step by candidate and round, and the losses of the first steps. Beside the steps:
    a rank's products, and an allreduce of one layer's activations, by themselves.
    """
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        train = from_arguments(arguments["train"])
        config = on_arrays(train, arguments["num_samples"], folder)
        steps = _steps(comm, config, arguments)
        losses = {
            name: [step() for _ in range(arguments["num_losses"])] for name, step in steps.items()
        }
        candidates = Candidates(comm)
        calls: dict[str, Callable[[], object]] = {**steps, PRODUCTS: _products(comm, config)}
        num = config.batch_size * config.model.hidden[0]
        for name, label in ALLREDUCES.items():
            calls[label] = candidates.call(name, num)
        if arguments["dtensor"]:
            x = torch.zeros(num)
            calls[GLOO] = lambda: torch.distributed.all_reduce(x)
        seconds = compare(comm, calls, arguments["rounds"], repeats=arguments["steps"])
        candidates.close()
        if arguments["dtensor"]:
            torch.distributed.destroy_process_group()
        return {"seconds": seconds, "losses": losses}


def _steps(
    comm: Communicator, config: TrainConfig, arguments: Mapping[str, Any]
) -> dict[str, Step]:
    alone = comm.split(comm.rank, 0)
    assert alone is not None
    whole = build_trainer(_on(config, 1), build_mesh(_on(config, 1), alone))
    weights = {name: value.clone() for name, value in whole.model.state_dict().items()}
    steps: dict[str, Step] = {}
    for layout in arguments["layouts"]:
        shared = _on(config, comm.size, layout)
        steps[ours(layout)] = _our_step(build_trainer(shared, build_mesh(shared, comm)))
    if arguments["dtensor"]:
        widths = (config.model.hidden[0], *config.model.hidden, config.model.hidden[-1])
        for name, sharded in ((DTENSOR, False), (DTENSOR_SHARDED, True)):
            model = tensor_parallel_mlp(comm, widths, weights, sharded)
            steps[name] = sgd_step(model, config.optimizer.lr, _batches(whole))
    steps[ONE_RANK] = _on_first_rank(comm, _our_step(whole))
    return steps


def _on(config: TrainConfig, operator: int, layout: str = "1d") -> TrainConfig:
    chosen = dataclasses.replace(config.operator_parallel, layout=layout)
    return dataclasses.replace(config, mesh=MeshConfig(1, 1, operator), operator_parallel=chosen)


def _our_step(trainer: Trainer) -> Step:
    """All that a step does in a run, from dealing the samples to the update."""
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        return trainer.step(0, (count - 1) % trainer.sampler.steps_per_epoch).loss

    return step


def _batches(trainer: Trainer) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """The batches that our steps get, from memory."""
    train, sampler = trainer.dataset.train, trainer.sampler
    every = train.batch(np.arange(train.num_samples))
    count = 0

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal count
        ids = torch.from_numpy(sampler.batch(0, count % sampler.steps_per_epoch))
        count += 1
        return every.inputs[ids], every.targets[ids]

    return batch


def _on_first_rank(comm: Communicator, step: Step) -> Step:
    """The step on rank 0 alone; the others sleep meanwhile, so that it has its core to itself."""
    word = np.zeros(1)

    def alone() -> float:
        if comm.rank == 0:
            word[0] = step()
            for rank in range(1, comm.size):
                comm.send(word, rank)
        else:
            request = comm.ireceive(word, 0)
            while not request.test():
                time.sleep(_LOOK_SECONDS)
        return float(word[0])

    return alone


def _products(comm: Communicator, config: TrainConfig) -> Callable[[], None]:
    """Those of a step of a 1-D cut, by torch, for the sizes of rank 0: forward, weight gradients,
    and input gradients of all layers but the first.
    """
    width, batch = config.model.hidden[0], config.batch_size
    own = -(-width // comm.size)
    widths = [width, *config.model.hidden, width]
    shapes = [
        (inputs, own) if i % 2 == 0 else (own, outputs)
        for i, (inputs, outputs) in enumerate(pairwise(widths))
    ]
    operands = [
        (torch.randn(batch, n), torch.randn(m, n), torch.randn(batch, m), torch.empty(m, n))
        for n, m in shapes
    ]

    def multiply() -> None:
        for number, (x, weight, dy, dw) in enumerate(operands):
            torch.mm(x, weight.T)
            torch.mm(dy.T, x, out=dw)
            if number:
                torch.mm(dy, weight)

    return multiply
