"""The one rank's part of `dist-ml bench kernel`: rates of products and of a copy."""

import math
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.kernels import kernels, peak
from dist_ml.kernels.kernels import Kernel
from dist_ml.kernels.rates import operands
from dist_ml.kernels.tuner import Shape, Tuner
from dist_ml.measure.compare import alternate, own_seconds

_COPY_WORDS, _COPIES = 1 << 25, 6
TUNED, BF16 = "tuned", "torch bf16"


def parse(text: str) -> Shape:
    """`128x3072x3072:NT` as a shape; without the letters both operands are row-major."""
    sizes, _, stored = text.partition(":")
    try:
        m, n, k = (int(size) for size in sizes.split("x"))
    except ValueError:
        raise ConfigError(
            f"shapes: {text} is no shape; write m x n x k as in 128x3072x3072:NT"
        ) from None
    if min(m, n, k) < 1 or (stored or "NN") not in ("NN", "NT", "TN", "TT"):
        raise ConfigError(
            f"shapes: {text} is no shape; sizes start at 1, storage is NN, NT, TN or TT"
        )
    return Shape(m, n, k, stored or "NN")


def measure(_comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """GFLOP/s by shape and kernel; what a copy moves in a second; and the tuner's choice against
    torch.
    """
    torch.set_num_threads(arguments["threads"])
    shapes = {text: parse(text) for text in arguments["shapes"]}
    tuner = Tuner(arguments["threads"])
    tuner.tune(shapes.values())
    smallest = min(shapes, key=lambda text: math.prod(shapes[text][:3]))
    rates, chosen = {}, {}
    for text, shape in shapes.items():
        names = [
            *kernels.usable(),
            *(["naive", "reordered", "blocked"] if arguments["loops"] and text == smallest else []),
        ]
        chosen[text] = tuner.choose(shape)
        calls = {name: kernels.named(name) for name in names}
        rates[text] = _rates(
            shape, {**calls, TUNED: kernels.named(chosen[text])}, arguments["rounds"]
        )
        rates[text][BF16] = _bf16_rate(shape, arguments["rounds"])
    words = {name: 2 if name == BF16 else 4 for by_kernel in rates.values() for name in by_kernel}
    measured = {"rates": rates, "bytes_per_second": copy_rate(), "words": words, "chosen": chosen}
    return {**measured, "peak": peak.flops_per_second()}


def _rates(shape: Shape, calls: Mapping[str, Kernel], rounds: int) -> dict[str, float]:
    c, a, b = operands(shape)
    candidates = {
        name: partial(own_seconds, partial(call, c, a, b, 1.0, 0.0)) for name, call in calls.items()
    }
    alternate(candidates, 1)
    flops = 2.0 * math.prod(shape[:3])
    return {
        name: flops / statistics.median(times) / 1e9
        for name, times in alternate(candidates, rounds).items()
    }


def _bf16_rate(shape: Shape, rounds: int) -> float:
    """torch's bfloat16 product, which rounds its result to bfloat16."""
    _, a, b = operands(shape)
    a, b = a.bfloat16(), b.bfloat16()
    times = [own_seconds(lambda: torch.mm(a, b)) for _ in range(rounds + 1)][1:]
    return 2.0 * math.prod(shape[:3]) / statistics.median(times) / 1e9


def copy_rate() -> float:
    """Bytes that a copy of a large array reads and writes in a second."""
    source, target = torch.ones(_COPY_WORDS), torch.empty(_COPY_WORDS)
    times = [own_seconds(lambda: target.copy_(source)) for _ in range(_COPIES)]
    return 8.0 * _COPY_WORDS / statistics.median(times)
