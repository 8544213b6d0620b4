"""`dist-ml bench memory`: the peak memory of a training rank, in multiples of its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.measure.memory import peak_bytes
from dist_ml.train.build import build_mesh, build_trainer

# Parameters, gradients and momentum are three times the parameters: a peak below that was not
# measured.
LEAST = 2.95


@dataclass(frozen=True)
class MemoryBench:
    """What to measure."""

    train: TrainConfig  # the optimizer: SGD with momentum is what the limit is for
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int  # of a step, over all ranks
    num_steps: int  # after which the peak is read


def run(config: MemoryBench, worlds: Worlds) -> Result:
    train = with_widths(config.train, config.widths, config.batch_size)
    measured = worlds.measure(
        "memory", {"train": to_arguments(train), "num_steps": config.num_steps}
    )
    records = [
        {"memory": name, "bytes": value, "of_parameters": value / measured["parameters"]}
        for name, value in measured.items()
    ]
    multiple = (measured["peak"] - measured["activations"]) / measured["parameters"]
    bare = multiple + measured["loaded by torch"] / measured["parameters"]
    checks = [
        Check("parameters, gradients and momentum at least", multiple, LEAST, "higher"),
        Check("peak memory of a rank over its parameters", multiple, 4.2, "lower"),
        Check("peak memory with torch's modules for its first optimizer", bare, 4.2, "lower"),
    ]
    return Result("memory", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Bytes beyond those of a rank that has torch and MPI in memory but nothing of ours; the
    largest of all ranks.
    """
    config = from_arguments(arguments["train"])
    comm.allreduce(torch.ones(1))
    imported = peak_bytes()
    load_torch()
    before = peak_bytes()
    trainer = build_trainer(config, build_mesh(config, comm))
    for index in range(arguments["num_steps"]):
        trainer.step(0, index)
    largest = torch.tensor(peak_bytes() - before)
    comm.allreduce(largest, "max")
    share = -(-config.batch_size // comm.size)
    # Of each layer, forward keeps its output, and backward holds that and the gradient on its way
    # through.
    train = trainer.dataset.train
    widths = (train.num_features, *config.model.hidden, train.num_outputs)
    activations = 4 * share * (2 * sum(widths) + max(widths))
    parameters = sum(4 * parameter.numel() for parameter in trainer.model.parameters())
    return {
        "parameters": parameters,
        "peak": int(largest),
        "activations": activations,
        "loaded by torch": before - imported,
    }


def load_torch() -> None:
    """Have torch import all of itself that training needs: its optimizers load about 79 MB of
    modules when the first is made.
    """
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    (parameter @ parameter).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD([parameter], lr=0.1, momentum=0.9).step()


BENCH = Bench("the peak memory of a training rank", MemoryBench, run, {"memory": measure}, ranks=2)
