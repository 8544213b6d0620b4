"""`dist-ml bench bitwise`: what it costs that a step has the same bits on any number of ranks, and
that it does.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, milliseconds
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import compare, ratio
from dist_ml.train.axis_words import planned_words
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

DENSE, CUT, BITWISE = "dense", "dense, cut alike", "bitwise"


@dataclass(frozen=True)
class BitwiseBench:
    """What to train, on how many ranks."""

    train: TrainConfig
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch_size: int  # of a step, over all ranks
    shards: int
    ranks: tuple[int, ...]
    rounds: int
    steps: int  # a round

    def __post_init__(self) -> None:
        for ranks in self.ranks:
            if self.shards % ranks:
                raise ConfigError(f"shards={self.shards} must be a multiple of ranks={ranks}")


def run(config: BitwiseBench, worlds: Worlds) -> Result:
    train = with_widths(config.train, config.widths, config.batch_size)
    arguments = {
        "train": to_arguments(train),
        "shards": config.shards,
        "rounds": config.rounds,
        "steps": config.steps,
    }
    environment = {"OMP_NUM_THREADS": "1"}
    found = {
        ranks: worlds.measure("bitwise", arguments, ranks=ranks, environment=environment)
        for ranks in config.ranks
    }
    records = [row for ranks, each in found.items() for row in _rows(ranks, each)]
    first = found[config.ranks[0]]
    others = sum(each["bits"] != first["bits"] for each in found.values())
    checks = [Check("numbers of ranks with other bits", others, 0, "lower")]
    for ranks, each in found.items():
        if ranks > 1:
            over = each["words"][BITWISE] / each["planned"]
            checks.append(Check(f"words over those planned, {ranks} ranks", over, 1, "lower"))
    return Result("bitwise", records, checks)


def _rows(ranks: int, found: Mapping[str, Any]) -> list[Record]:
    seconds, words = found["seconds"], found["words"]
    return [
        {
            "ranks": ranks,
            "gradients": name,
            **milliseconds(values),
            "over dense": ratio(values, seconds[DENSE]).median,
            "words": words[name],
            "words over dense": words[name] / words[DENSE] if words[DENSE] else None,
        }
        for name, values in seconds.items()
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step by candidate and round, the slowest rank's; words that rank 0 sends in one;
    losses and weights after the first round, as bits.
    """
    config = from_arguments(arguments["train"])
    cut = dataclasses.replace(config, accumulation=arguments["shards"] // comm.size)
    bitwise = dataclasses.replace(config, reproduce=ReproduceConfig(arguments["shards"]))
    mesh = build_mesh(config, comm)
    configs = {DENSE: config, CUT: cut, BITWISE: bitwise}
    trainers = {name: build_trainer(chosen, mesh) for name, chosen in configs.items()}
    words, bits = {}, []
    for name, trainer in trainers.items():
        losses, words[name] = _first_steps(trainer, comm, arguments["steps"])
        bits = [loss.hex() for loss in losses]
    bits += [_bits(tensor) for tensor in trainers[BITWISE].parameters.values()]
    calls: dict[str, Callable[[], object]] = {
        name: _stepping(trainer) for name, trainer in trainers.items()
    }
    seconds = compare(comm, calls, arguments["rounds"], repeats=arguments["steps"])
    planned = planned_words(bitwise, trainers[BITWISE]).get("data", 0)
    for trainer in trainers.values():
        trainer.close()
    return {"seconds": seconds, "words": words, "planned": planned, "bits": bits}


def _first_steps(trainer: Trainer, comm: Communicator, steps: int) -> tuple[list[float], float]:
    before = comm.traffic.total().words_sent
    losses = [step.loss for step in trainer.next_steps(steps)]
    return losses, (comm.traffic.total().words_sent - before) / steps


def _stepping(trainer: Trainer) -> Callable[[], object]:
    return lambda: list(trainer.next_steps(1))


def _bits(tensor: torch.Tensor) -> str:
    """A digest of the tensor, which no other bits have."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


BENCH = Bench(
    "what reproduce=bitwise costs over dense gradients, and that its bits are the same",
    BitwiseBench,
    run,
    {"bitwise": measure},
    ranks=4,
)
