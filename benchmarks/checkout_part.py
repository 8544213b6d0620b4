"""One rank of one of two checkouts that take turns: `checkout_part.py CASE FOLDER LABEL`.

Started by compare_checkouts.py, with the checkout first on PYTHONPATH; so it asks of the package
only what old and new checkouts have in common. A rank that is not its checkout's turn sleeps on a
file, so that the other one has the machine to itself.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import dist_ml
from dist_ml.cli import arguments, compose
from dist_ml.comm import mpi
from dist_ml.comm.allreduce import family
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer

CHECKOUT_VARIABLE = "COMPARED_CHECKOUT"
ROUND_SECONDS = 0.3  # that a candidate is repeated for, in each turn
LOOK_SECONDS = 0.003  # between looks for the file that says whose turn it is
LIMIT_SECONDS = 600.0  # for the other checkout's turn

_MANY_EPOCHS = "epochs=1000"  # so that no run of a comparison ends
_LARGE = (
    _MANY_EPOCHS,
    "data=synthetic",
    "data.num_features=784",
    "model.hidden=[1024,1024]",
    "batch_size=64",
    "optimizer.lr=0.001",
)
_SPARSE = (*_LARGE, "sparse=topk", "sparse.allreduce=oktopk", "sparse.selection=threshold")


class Case(NamedTuple):
    """What is compared on how many ranks."""

    ranks: int
    overrides: tuple[str, ...] | None  # of a training run whose step is timed; None: an allreduce


CASES = {
    "step1": Case(1, (_MANY_EPOCHS,)),
    "step2": Case(2, (_MANY_EPOCHS,)),
    "large_step1": Case(1, _LARGE),
    "large_step2": Case(2, _LARGE),
    "shared_step2": Case(2, (*_LARGE, "allreduce=shared_memory")),
    "overlap": Case(2, (*_LARGE, "allreduce=shared_memory", "allreduce.overlap=thread")),
    "sparse1": Case(1, _SPARSE),
    "sparse2": Case(2, _SPARSE),
    "shared_allreduce": Case(2, None),
}
SIZES_BYTES = (4096, 1 << 20, 100_000_000)
BITS = "bits"


def main(case: str, folder: str, label: str) -> None:
    """Measure when it is this checkout's turn, until told to stop."""
    _check_origin()
    comm = mpi.world()
    if case == BITS:
        _write(comm, Path(folder) / f"{label}.json", _losses(comm))
        return
    chosen = CASES[case]
    calls = _allreduces(comm) if chosen.overrides is None else _step(comm, chosen.overrides)
    repeats = {name: _repeats(comm, call) for name, call in calls.items()}
    for turn, file in enumerate(_turns(Path(folder), label)):
        if file.read_text() == "stop":
            return
        seconds = {name: _seconds(comm, call, repeats[name]) for name, call in calls.items()}
        _write(comm, Path(folder) / f"{label}-{turn}.json", seconds)


def _check_origin() -> None:
    found, wanted = Path(dist_ml.__file__).parents[1], Path(os.environ[CHECKOUT_VARIABLE])
    if found.resolve() != wanted.resolve():
        raise SystemExit(f"dist_ml came from {found}, not from {wanted}, which was to be measured")


def _turns(folder: Path, label: str) -> Iterator[Path]:
    """The files that give the turns, each as soon as it is there."""
    turn = 0
    while True:
        file, end = folder / f"{label}-{turn}.turn", time.monotonic() + LIMIT_SECONDS
        while not file.exists():
            if time.monotonic() > end:
                raise SystemExit(f"no turn came in {LIMIT_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)
        yield file
        turn += 1


def _config(overrides: tuple[str, ...]) -> TrainConfig:
    request = arguments.parse(list(overrides), "compare", config_name="train")
    return from_mapping(TrainConfig, compose.composed(request))


def _step(comm: Any, overrides: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    config = _config(overrides)
    trainer = build_trainer(config, build_mesh(config, comm))
    count = 0

    def step() -> None:
        nonlocal count
        trainer.step(0, count % trainer.sampler.steps_per_epoch)
        count += 1

    return {"step": step}


def _allreduces(comm: Any) -> dict[str, Callable[[], object]]:
    """Of shared memory, by size, on buffers that it allocated and on ordinary tensors."""
    reduce = family.make("shared_memory", comm, "fp32")
    calls: dict[str, Callable[[], object]] = {}
    for size in SIZES_BYTES:
        own = reduce.allocate(size // 4, torch.float32).mul_(0.0)
        other = torch.zeros(size // 4)
        calls[f"{size} bytes"] = lambda x=own: reduce(x)
        calls[f"{size} bytes, ordinary"] = lambda x=other: reduce(x)
    return calls


def _losses(comm: Any) -> list[str]:
    """Every loss of the default run, bit by bit."""
    config = _config(())
    trainer = build_trainer(config, build_mesh(config, comm))
    steps = range(trainer.sampler.steps_per_epoch)
    return [
        float(trainer.step(epoch, index).loss).hex()
        for epoch in range(config.epochs)
        for index in steps
    ]


def _seconds(comm: Any, call: Callable[[], object], repeats: int) -> float:
    """The slowest rank's mean."""
    comm.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = torch.tensor([(time.perf_counter() - start) / repeats], dtype=torch.float64)
    comm.allreduce(taken, "max")
    return float(taken)


def _repeats(comm: Any, call: Callable[[], object]) -> int:
    """How many calls fill a turn; the first ones compile and connect."""
    _seconds(comm, call, 3)
    return max(1, int(ROUND_SECONDS / max(1e-7, _seconds(comm, call, 3))))


def _write(comm: Any, file: Path, value: object) -> None:
    """Rank 0's value, whole or not at all."""
    if comm.rank == 0:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(value))
        partial.replace(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
