"""`dist-ml bench step kernel=auto`: our training step on tuned kernels against a bare PyTorch loop,
by batch size.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, alternate, median_ratio
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.kernels import kernels, peak
from dist_ml.kernels.rates import operands, rates
from dist_ml.kernels.tuner import FALLBACK, Shape
from dist_ml.nn.linear import Products, TunedLinear
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer

WIDTHS = (1024, 3072, 3072, 3072, 1024)
LIMITS = {32: 1.4, 128: 1.9, 512: 1.9}  # times faster than the bare loop, by batch size
COMPARED_STEPS = 20
# At the default 0.1 this network's loss on random labels grows, and any two roundings grow apart
# with it, whatever the kernel.
LEARNING_RATE = 0.003


def run(
    train: TrainConfig, kernel: str, rounds: int, batches: Sequence[int], worlds: Worlds
) -> Result:
    """One world a batch size; in each, the same model on tuned kernels and bare, and both losses
    step by step.
    """
    records: list[Record] = []
    checks: list[Check] = []
    for batch_size in batches:
        optimizer = dataclasses.replace(train.optimizer, lr=LEARNING_RATE)
        tuned = dataclasses.replace(
            with_widths(train, WIDTHS, batch_size), kernel=kernel, optimizer=optimizer
        )
        found = worlds.measure(
            "kernel step", {"train": to_arguments(tuned), "rounds": rounds}, ranks=1
        )
        seconds = found["seconds"]
        speedup = median_ratio(seconds["bare torch"], seconds["dist_ml"])
        times = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        point = {
            "batch": batch_size,
            "bare torch ms": times["bare torch"],
            "dist_ml ms": times["dist_ml"],
            "times faster": speedup,
        }
        records.append({**point, **_ceiling(found, times), "loss differs by": found["loss"]})
        checks += [
            Check(f"D6 times faster at batch {batch_size}", speedup, LIMITS[batch_size], "higher"),
            Check(f"D6 loss differs at batch {batch_size}", found["loss"], 1e-5, "lower"),
        ]
    return Result("step", records, checks)


def _ceiling(found: Mapping[str, Any], milliseconds: Mapping[str, float]) -> dict[str, float]:
    """What part of the step is products, and how many times faster it could be with all of them at
    the fastest rate seen.
    """
    rest = milliseconds["dist_ml"] - milliseconds["products"]
    limits = {
        "fastest product": found["fastest"],
        **({"peak": found["peak"]} if found["peak"] else {}),
    }
    told = {
        "products ms": milliseconds["products"],
        "torch's products ms": milliseconds["torch's products"],
        "other ms": rest,
    }
    for name, rate in limits.items():
        told |= {
            f"{name} GFLOP/s": rate / 1e9,
            f"ceiling at {name}": milliseconds["bare torch"] / (found["flops"] / rate * 1e3 + rest),
        }
    return told


def measure(
    comm: Communicator,
    arguments: Mapping[str, Any],
    our_steps: Callable[[Trainer, int], Callable[[], float]],
    bare_steps: Callable[[Trainer, TrainConfig, int], Callable[[], float]],
) -> dict[str, Any]:
    """Seconds a step, by candidate and round; and how far the losses of the kernels lie apart over
    the first steps.
    """
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        config = on_arrays(from_arguments(arguments["train"]), 2048, folder)
        losses = {
            kernel: _losses(dataclasses.replace(config, kernel=kernel), comm)
            for kernel in (config.kernel, "torch")
        }
        apart = max(
            abs(a - b) / abs(b) for a, b in zip(losses[config.kernel], losses["torch"], strict=True)
        )
        trainer = build_trainer(config, build_mesh(config, comm))
        steps = min(4, max(1, 512 // config.batch_size))
        layers = [layer for layer in trainer.model.modules() if isinstance(layer, TunedLinear)]
        ours = [layer.products(config.batch_size) for layer in layers]
        candidates = {
            "dist_ml": our_steps(trainer, steps),
            "bare torch": bare_steps(trainer, config, steps),
            "products": _products(layers, ours, config.batch_size),
            "torch's products": _products(
                layers, [Products(*[FALLBACK] * 3)] * len(layers), config.batch_size
            ),
        }
        alternate(candidates, 1)
        seconds = alternate(candidates, arguments["rounds"])
        shapes = [shape for shape, _ in _steps_products(layers, ours, config.batch_size)]
        fastest = max(
            rate for shape in set(shapes) for rate in rates(shape, kernels.usable()).values()
        )
        flops = sum(2.0 * shape.m * shape.n * shape.k for shape in shapes)
        return {
            "seconds": seconds,
            "loss": apart,
            "flops": flops,
            "fastest": 1e9 * fastest,
            "peak": _peak(),
        }


def _steps_products(
    layers: Sequence[TunedLinear], chosen: Sequence[Products], rows: int
) -> list[tuple[Shape, str]]:
    """The products of one step and their kernels; the first layer's input needs no gradient."""
    every = [
        pair
        for layer, names in zip(layers, chosen, strict=True)
        for pair in zip(layer.shapes(rows), names, strict=True)
    ]
    return every[:1] + every[2:]


def _products(
    layers: Sequence[TunedLinear], chosen: Sequence[Products], rows: int
) -> Callable[[], float]:
    """Seconds of a step's products alone."""
    calls = [
        partial(kernels.KERNELS[name], *operands(shape), 1.0, 0.0)
        for shape, name in _steps_products(layers, chosen, rows)
    ]

    def seconds() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start

    return seconds


def _peak() -> float | None:
    per_thread = peak.flops_per_second()
    return None if per_thread is None else per_thread * torch.get_num_threads()


def _losses(config: TrainConfig, comm: Communicator) -> list[float]:
    trainer = build_trainer(config, build_mesh(config, comm))
    return [
        float(trainer.step(0, step % trainer.sampler.steps_per_epoch).loss)
        for step in range(COMPARED_STEPS)
    ]
