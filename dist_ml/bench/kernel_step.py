"""`dist-ml bench step kernel=auto`: our training step on tuned kernels against a bare PyTorch loop, by batch size."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, alternate, median_ratio
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

WIDTHS = (1024, 3072, 3072, 3072, 1024)
LIMITS = {32: 1.4, 128: 1.9, 512: 1.9}  # times faster than the bare loop, by batch size
COMPARED_STEPS = 20
# At the default 0.1 this network's loss on random labels grows, and any two roundings grow apart with it, whatever the kernel.
LEARNING_RATE = 0.003


def run(train: TrainConfig, kernel: str, rounds: int, worlds: Worlds) -> Result:
    """One world a batch size; in each, the same model on tuned kernels and bare, and both losses step by step."""
    records: list[Record] = []
    checks: list[Check] = []
    for batch_size, limit in LIMITS.items():
        optimizer = dataclasses.replace(train.optimizer, lr=LEARNING_RATE)
        tuned = dataclasses.replace(with_widths(train, WIDTHS, batch_size), kernel=kernel, optimizer=optimizer)
        found = worlds.measure("kernel step", {"train": to_arguments(tuned), "rounds": rounds}, ranks=1)
        seconds = found["seconds"]
        speedup = median_ratio(seconds["bare torch"], seconds["dist_ml"])
        times = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        point = {
            "batch": batch_size,
            "bare torch ms": times["bare torch"],
            "dist_ml ms": times["dist_ml"],
            "times faster": speedup,
        }
        records.append({**point, "loss differs by": found["loss"]})
        checks += [
            Check(f"D6 times faster at batch {batch_size}", speedup, limit, "higher"),
            Check(f"D6 loss differs at batch {batch_size}", found["loss"], 1e-5, "lower"),
        ]
    return Result("step", records, checks)


def measure(
    comm: Communicator,
    arguments: Mapping[str, Any],
    our_steps: Callable[[Trainer, int], Callable[[], float]],
    bare_steps: Callable[[Trainer, TrainConfig, int], Callable[[], float]],
) -> dict[str, Any]:
    """Seconds a step, by candidate and round; and how far the losses of the kernels lie apart over the first steps."""
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        config = on_arrays(from_arguments(arguments["train"]), 2048, folder)
        losses = {kernel: _losses(dataclasses.replace(config, kernel=kernel), comm) for kernel in (config.kernel, "torch")}
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses[config.kernel], losses["torch"], strict=True))
        trainer = build_trainer(config, build_mesh(config, comm))
        steps = min(4, max(1, 512 // config.batch_size))
        candidates = {"dist_ml": our_steps(trainer, steps), "bare torch": bare_steps(trainer, config, steps)}
        alternate(candidates, 1)
        return {"seconds": alternate(candidates, arguments["rounds"]), "loss": apart}


def _losses(config: TrainConfig, comm: Communicator) -> list[float]:
    trainer = build_trainer(config, build_mesh(config, comm))
    return [float(trainer.step(0, step % trainer.sampler.steps_per_epoch).loss) for step in range(COMPARED_STEPS)]
