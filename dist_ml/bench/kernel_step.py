"""`dist-ml bench step kernel=auto`: our training step on tuned kernels against a bare PyTorch loop,
by batch size.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dist_ml.bench.bare_step import BARE, FUSED
from dist_ml.bench.configured import from_arguments, on_arrays, to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.reproduce import difference
from dist_ml.bench.step_candidates import OURS, bare_candidates, our_steps
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrainConfig
from dist_ml.kernels import kernels, peak
from dist_ml.kernels.rates import operands, rates
from dist_ml.kernels.tuner import FALLBACK, Shape
from dist_ml.measure.compare import alternate, fastest, own_seconds, ratio
from dist_ml.nn.linear import Products, TunedLinear
from dist_ml.train.build import build_mesh, build_trainer

WIDTHS = (1024, 3072, 3072, 3072, 1024)
# The same step of ours on torch's kernel; the products alone, by our choice and by torch's.
OURS_ON_TORCH, PRODUCTS, TORCH_PRODUCTS = "dist_ml, kernel=torch", "products", "torch's products"
LIMITS = {32: 1.4, 128: 1.9, 512: 1.9}  # times faster than the best bare loop, by batch size
_NUM_SAMPLES = 2048
COMPARED_STEPS = 20
# At the default 0.1 this network's loss on random labels grows, and any two roundings grow apart
# with it, whatever the kernel.
LEARNING_RATE = 0.003


def run(
    train: TrainConfig, kernel: str, rounds: int, batches: Sequence[int], worlds: Worlds
) -> Result:
    """One world a batch size; in each, the same model on tuned kernels, on torch's and bare, and
    the losses of both kernels step by step.
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
        times = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        best = fastest(seconds, (BARE, FUSED))
        records += [
            {
                "batch": batch_size,
                "candidate": name,
                "ms": 1e3 * statistics.median(values),
                "ours is times faster": ratio(values, seconds[OURS]).median,
            }
            for name, values in seconds.items()
            if name not in (PRODUCTS, TORCH_PRODUCTS)
        ]
        records.append({"batch": batch_size, **_ceiling(found, times, times[best])})
        checks += step_checks(batch_size, seconds, found["loss"])
    return Result("step", records, checks)


def step_checks(
    batch_size: int, seconds: Mapping[str, Sequence[float]], loss_difference: float
) -> list[Check]:
    """Step over the best bare step, and, apart from that, kernel over kernel: the same step of ours
    on torch's kernel, which shares all but the products.
    """
    best = fastest(seconds, (BARE, FUSED))
    at = f"at batch {batch_size}"
    over_bare = ratio(seconds[best], seconds[OURS]).median
    over_torch = ratio(seconds[OURS_ON_TORCH], seconds[OURS]).median
    return [
        Check(f"best bare step over ours {at}", over_bare, LIMITS[batch_size], "higher"),
        Check(f"step on torch's kernel over tuned {at}", over_torch, 1.0, "higher"),
        Check(f"relative difference of losses {at}", loss_difference, 1e-5, "lower"),
    ]


def _ceiling(
    found: Mapping[str, Any], milliseconds: Mapping[str, float], bare: float
) -> dict[str, float]:
    """What part of the step is products, and how many times faster than the best bare one it could
    be with all of them at the fastest rate seen.
    """
    rest = milliseconds[OURS] - milliseconds[PRODUCTS]
    limits = {
        "fastest product": found["fastest"],
        **({"peak": found["peak"]} if found["peak"] else {}),
    }
    told = {
        "products ms": milliseconds[PRODUCTS],
        "torch's products ms": milliseconds[TORCH_PRODUCTS],
        "other ms": rest,
        "loss differs by": found["loss"],
    }
    for name, rate in limits.items():
        told |= {
            f"{name} GFLOP/s": rate / 1e9,
            f"ceiling at {name}": bare / (found["flops"] / rate * 1e3 + rest),
        }
    return told


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step, by candidate and round; and how far the losses of the kernels lie apart over
    the first steps.
    """
    with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
        config = on_arrays(from_arguments(arguments["train"]), _NUM_SAMPLES, folder)
        on_torch = dataclasses.replace(config, kernel=FALLBACK)
        losses, expected = (_losses(each, comm) for each in (config, on_torch))
        trainer = build_trainer(config, build_mesh(config, comm))
        steps = min(4, max(1, 512 // config.batch_size))
        layers = [layer for layer in trainer.model.modules() if isinstance(layer, TunedLinear)]
        chosen = [layer.products(config.batch_size) for layer in layers]
        unchosen = [Products(*[FALLBACK] * 3)] * len(layers)
        candidates = {
            OURS: our_steps(trainer, steps),
            OURS_ON_TORCH: our_steps(build_trainer(on_torch, build_mesh(on_torch, comm)), steps),
            **bare_candidates(trainer, config, steps),
            PRODUCTS: _products(layers, chosen, config.batch_size),
            TORCH_PRODUCTS: _products(layers, unchosen, config.batch_size),
        }
        alternate(candidates, 1)
        seconds = alternate(candidates, arguments["rounds"])
        shapes = [shape for shape, _ in _steps_products(layers, chosen, config.batch_size)]
    return {
        "seconds": seconds,
        "loss": difference(losses, expected),
        "flops": sum(2.0 * shape.m * shape.n * shape.k for shape in shapes),
        "fastest": 1e9 * _fastest_rate(shapes),
        "peak": _peak(),
    }


def _fastest_rate(shapes: Iterable[Shape]) -> float:
    """GFLOP/s of the fastest kernel on the fastest shape."""
    return max(rate for shape in set(shapes) for rate in rates(shape, kernels.usable()).values())


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

    def multiply() -> None:
        for call in calls:
            call()

    return lambda: own_seconds(multiply)


def _peak() -> float | None:
    per_thread = peak.flops_per_second()
    return None if per_thread is None else per_thread * torch.get_num_threads()


def _losses(config: TrainConfig, comm: Communicator) -> list[float]:
    trainer = build_trainer(config, build_mesh(config, comm))
    return [
        float(trainer.step(0, step % trainer.sampler.steps_per_epoch).loss)
        for step in range(COMPARED_STEPS)
    ]
