"""`dist-ml bench choice`: what the plan takes that `dist-ml plan --search` chooses, over the best
of all candidates as measured. The machine is calibrated first.

All candidates are measured once; the chosen one and the fastest are then measured again, in turn,
so that the fastest of many isn't only the luckiest.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import from_arguments, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import DistMLError
from dist_ml.launch.mpiexec import cores
from dist_ml.measure.compare import slowest
from dist_ml.measure.memory import physical_bytes
from dist_ml.plan.candidates import Candidates, overrides
from dist_ml.plan.machine import Processor
from dist_ml.plan.networked import Machine
from dist_ml.plan.search import Choice, search
from dist_ml.train.build import build_mesh, build_trainer

_WARM_UP = 2
# Not searched here: they change the numbers, or how often a rank is idle on the same mesh.
_HELD = ("precision", "allreduce.wire", "accumulation", "pipeline.microbatches")


@dataclass(frozen=True)
class ChoiceBench:
    """Every model at every batch on every number of ranks."""

    train: TrainConfig  # precision, micro-batches and the like
    mlps: tuple[tuple[int, ...], ...]  # widths
    mlp_batches: tuple[int, ...]
    transformers: tuple[tuple[int, ...], ...]  # width, depth, heads, tokens
    transformer_batches: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int  # measured
    again: int  # candidates that are measured once more, beside the chosen one
    rounds: int  # of these
    mpi: str


class _Problem(NamedTuple):
    name: str
    train: TrainConfig
    choices: list[Choice]  # all candidates, the one predicted fastest first


def run(config: ChoiceBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    for ranks in config.ranks:
        on = min(ranks, cores())
        found = worlds.measure("calibrate", {}, ranks=on, mpi=config.mpi)  # of bench prediction
        machine = Machine(Processor.from_mapping(found), os.cpu_count() or 1, ranks)
        problems = [
            _Problem(name, train, _all_choices(train, machine, ranks))
            for name, train in _models(config)
        ]
        first = _measured(config, worlds, ranks, [each.choices for each in problems], 1)
        fastest = [
            [problem.choices[place] for place in _leaders(seconds, config.again)]
            for problem, seconds in zip(problems, first, strict=True)
        ]
        second = _measured(config, worlds, ranks, fastest, config.rounds)
        records += map(_record, [ranks] * len(problems), problems, first, fastest, second)
    return Result("choice", records, checks_of(records))


def checks_of(records: Sequence[Record]) -> list[Check]:
    over = [record["chosen over the best"] for record in records]
    correlations = [record["rank correlation"] for record in records]
    return [
        Check("problems", len(records), 12, "higher"),
        Check("most of a chosen plan's time over the best measured", max(over), 1.05, "lower"),
        Check(
            "median of a chosen plan's time over the best", statistics.median(over), 1.05, "lower"
        ),
        Check("median rank correlation", statistics.median(correlations), 0.8, "higher"),
        Check(
            "candidates that a run refuses",
            sum(record["refused by the run"] for record in records),
            0,
            "lower",
        ),
    ]


def _models(config: ChoiceBench) -> list[tuple[str, TrainConfig]]:
    found = []
    for widths in config.mlps:
        for batch in config.mlp_batches:
            name = f"mlp {'-'.join(map(str, widths))}, batch {batch}"
            found.append((name, with_widths(config.train, widths, batch)))
    for width, depth, heads, tokens in config.transformers:
        model = ModelConfig("transformer", activation="gelu", width=width, depth=depth, heads=heads)
        data = DataConfig("text", num_tokens=tokens, test_fraction=0.1)
        for batch in config.transformer_batches:
            train = dataclasses.replace(config.train, model=model, data=data, batch_size=batch)
            found.append((f"transformer {width} x {depth}, batch {batch} x {tokens}", train))
    return found


def _all_choices(train: TrainConfig, machine: Machine, ranks: int) -> list[Choice]:
    candidates = Candidates(train, _HELD, ranks, most_operator=ranks)
    return search(candidates, machine, physical_bytes() // ranks, num_best=1 << 20).best


def _measured(
    config: ChoiceBench,
    worlds: Worlds,
    ranks: int,
    problems: Sequence[Sequence[Choice]],
    rounds: int,
) -> list[list[float]]:
    """Of each problem's choices; infinite for those that the run refuses."""
    trains = [[to_arguments(each.config) for each in choices] for choices in problems]
    arguments = {"problems": trains, "steps": config.steps, "rounds": rounds}
    found = worlds.measure("choices", arguments, ranks=ranks, mpi=config.mpi)
    return [[float("inf") if s is None else s for s in seconds] for seconds in found]


def _leaders(seconds: Sequence[float], number: int) -> list[int]:
    """The chosen one, which is the first, and the fastest."""
    order = sorted(range(len(seconds)), key=seconds.__getitem__)
    return list(dict.fromkeys((0, *order[:number])))


def _record(
    ranks: int,
    problem: _Problem,
    first: Sequence[float],
    fastest: Sequence[Choice],
    second: Sequence[float],
) -> Record:
    best = min(range(len(second)), key=second.__getitem__)
    finite = [place for place, seconds in enumerate(first) if seconds < float("inf")]
    predicted = [problem.choices[place].seconds.total for place in finite]
    return {
        "model": problem.name,
        "ranks": ranks,
        "candidates": len(first),
        "chosen": " ".join(overrides(fastest[0].config, problem.train)),
        "best": " ".join(overrides(fastest[best].config, problem.train)),
        "chosen ms": 1e3 * second[0],
        "best ms": 1e3 * second[best],
        "chosen over the best": second[0] / second[best],
        "slowest over the best": max(first[place] for place in finite) / min(first),
        "rank correlation": rank_correlation(predicted, [first[place] for place in finite]),
        "refused by the run": len(first) - len(finite),
    }


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: of the places in order, equal values sharing the middle of theirs."""
    places = [_places(np.asarray(values)) for values in (x, y)]
    return float(np.corrcoef(*places)[0, 1])


def _places(values: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal - 1) / 2


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[list[float | None]]:
    """Median seconds of a step of each configuration, of the slowest rank; None for those that a
    run refuses.
    """
    found: list[list[float | None]] = []
    for problem in arguments["problems"]:
        rounds = [
            [_seconds(comm, from_arguments(mapping), arguments["steps"]) for mapping in problem]
            for _ in range(arguments["rounds"])
        ]
        found.append([_middle(seconds) for seconds in zip(*rounds, strict=True)])
    return found


def _middle(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return statistics.median(known) if known else None


def _seconds(comm: Communicator, config: TrainConfig, steps: int) -> float | None:
    mesh = build_mesh(config, comm)
    try:
        trainer = build_trainer(config, mesh)
    except DistMLError:  # on all ranks
        mesh.free()
        return None
    taken = []
    for number in range(_WARM_UP + steps):
        place = divmod(number, trainer.sampler.steps_per_epoch)
        comm.barrier()
        start = time.perf_counter()
        trainer.step(*place)
        taken.append(time.perf_counter() - start)
    trainer.close()
    mesh.free()
    return slowest(comm, statistics.median(taken[_WARM_UP:]))


BENCH = Bench(
    "the plan that dist-ml plan --search chooses, against all candidates as measured",
    ChoiceBench,
    run,
    {"choices": measure},
    ranks=1,
)
