"""The child process of the tuner: JSON on standard input says what to measure, JSON on standard
output says how fast it was.
"""

import json
import statistics
import sys
import time
from typing import Any

import torch

from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import Shape

# Each kernel runs for about this long in each round, and all kernels take turns, so that noise hits
# all of them.
_ROUND_SECONDS = 0.02
_ROUNDS = 5


def rates(shape: Shape, names: list[str]) -> dict[str, float]:
    """Median GFLOP/s of each kernel on this shape."""
    c, a, b = operands(shape)
    calls = {name: kernels.named(name) for name in names}
    repeats = {name: _repeats(call, c, a, b) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            seconds[name].append(_seconds(call, c, a, b, repeats[name]))
    flops = 2.0 * shape.m * shape.n * shape.k
    return {name: flops / statistics.median(taken) / 1e9 for name, taken in seconds.items()}


def operands(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """C, A, B with the shape's sizes and storage."""
    dtype = getattr(torch, shape.dtype)
    a = torch.rand(
        (shape.m, shape.k) if shape.stored[0] == "N" else (shape.k, shape.m), dtype=dtype
    )
    b = torch.rand(
        (shape.k, shape.n) if shape.stored[1] == "N" else (shape.n, shape.k), dtype=dtype
    )
    c = torch.zeros((shape.m, shape.n), dtype=dtype)
    return c, a if shape.stored[0] == "N" else a.T, b if shape.stored[1] == "N" else b.T


def _seconds(
    call: kernels.Kernel, c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, repeats: int
) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call(c, a, b, 1.0, 0.0)
    return (time.perf_counter() - start) / repeats


def _repeats(call: kernels.Kernel, c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> int:
    """How many calls fill a round; the first call only warms up."""
    _seconds(call, c, a, b, 1)
    return max(1, int(_ROUND_SECONDS / max(1e-7, _seconds(call, c, a, b, 1))))


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    shapes = [Shape(*shape) for shape in request["shapes"]]
    json.dump({shape.key: rates(shape, request["kernels"]) for shape in shapes}, sys.stdout)


if __name__ == "__main__":
    main()
