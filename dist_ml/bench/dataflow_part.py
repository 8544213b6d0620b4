"""The one rank's part of `dist-ml bench dataflow`: what an encoder layer's operators move and take,
and the whole layer in its forms.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dist_ml import compiled
from dist_ml.bench.encoder_layer import EncoderLayer, LayerSizes
from dist_ml.bench.kernel_part import copy_rate
from dist_ml.bench.layout_path import ROWS, change_call, layer_steps, shortest
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import MachineError
from dist_ml.launch.extras import install_command
from dist_ml.measure.compare import own_seconds
from dist_ml.plan.dataflow import Stretch, stretches
from dist_ml.plan.operators import Operator, recorded, without_data

if TYPE_CHECKING:
    from dist_ml.bench.fused_layer import FusedEncoderLayer

SEPARATE, COMPILED, FUSED = "torch", "torch.compile", "fused"
PASSES = ("forward", "backward")


def measure(_comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Flops, bytes and seconds of each stretch by pass; seconds of the layer's forms by pass and
    round; bytes that two of them move; bytes a second of a copy.
    """
    torch.set_num_threads(arguments["threads"])
    sizes, dropout = LayerSizes(*arguments["sizes"]), arguments["dropout"]
    rounds = arguments["rounds"]
    planned = layer_stretches(sizes, dropout)
    timed = [[_timed(stretch, rounds) for stretch in found] for found in planned]
    layers: dict[str, Any] = {SEPARATE: EncoderLayer(sizes, dropout)}
    layers[FUSED] = fused_layer(sizes, dropout)
    if arguments["compiled"]:
        layers[COMPILED] = compiled_layer(sizes, dropout)
    seconds = layer_seconds(layers, sizes, rounds)
    fused = fused_steps(sizes, dropout, rounds)
    return {
        "stretches": dict(zip(PASSES, timed, strict=True)),
        "passes": fused["passes"],
        "layers": seconds,
        "layouts": layouts(sizes, rounds),
        "moved": {
            SEPARATE: sum(stretch.moved_bytes for found in planned for stretch in found),
            FUSED: fused["moved"],
        },
        "bytes_per_second": copy_rate(),
    }


def layer_stretches(sizes: LayerSizes, dropout: float) -> list[list[Stretch]]:
    """Of `EncoderLayer`, forward and backward, without computing anything."""
    with without_data():
        layer = EncoderLayer(sizes, dropout)
        parameters: list[torch.Tensor] = list(layer.parameters())
        x = torch.empty(sizes.batch, sizes.tokens, sizes.width, requires_grad=True)
        with recorded(parameters) as there:
            y = layer(x)
        with recorded([]) as back:
            y.backward(torch.empty_like(y))
        results = [y, *(leaf.grad for leaf in (x, *parameters) if leaf.grad is not None)]
        return stretches([there.operators, back.operators], results)


def fused_layer(sizes: LayerSizes, dropout: float) -> "FusedEncoderLayer":
    """`MachineError` without the compiler of its loops."""
    if not compiled.available():
        raise MachineError(f"fused passes need numba; run: {install_command('numba')}")
    from dist_ml.bench.fused_layer import FusedEncoderLayer

    return FusedEncoderLayer(sizes, dropout)


def compiled_layer(sizes: LayerSizes, dropout: float) -> Any:
    """By torch's own compiler, on first use; `MachineError` without a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MachineError(
            f"compiled=true needs a C++ compiler, but {compiler} is not there; install one, "
            "name it in CXX, or set compiled=false"
        )
    return torch.compile(EncoderLayer(sizes, dropout))


def fused_steps(sizes: LayerSizes, dropout: float, rounds: int) -> dict[str, Any]:
    """Of `FusedEncoderLayer`: bytes of a step, what torch runs and its own passes, counted; and
    bytes and median seconds of each of these.
    """
    layer = fused_layer(sizes, dropout)
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width, requires_grad=True)
    gradient = torch.randn_like(x)
    with recorded([]) as record:
        layer(x).backward(gradient)
    own = dict(layer.counted.num_bytes)
    seconds: dict[str, list[float]] = {name: [] for name in own}
    for _ in range(rounds):
        layer.counted.clear()
        layer(x).backward(gradient)
        for name, spent in layer.counted.seconds.items():
            seconds[name].append(spent)
    (found,) = stretches([record.operators], [])
    return {
        "moved": sum(own.values()) + sum(stretch.moved_bytes for stretch in found),
        "passes": {
            name: {"moved": num_bytes, "seconds": statistics.median(seconds[name])}
            for name, num_bytes in own.items()
        },
    }


def layer_seconds(
    layers: Mapping[str, Any], sizes: LayerSizes, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Of each layer's passes by round, in turn, after a step of each that isn't counted."""
    x = torch.randn(sizes.batch, sizes.tokens, sizes.width, requires_grad=True)
    gradient = torch.randn_like(x)
    seconds: dict[str, dict[str, list[float]]] = {
        name: {each: [] for each in PASSES} for name in layers
    }
    for number in range(rounds + 1):
        for name in list(layers)[:: 1 if number % 2 == 0 else -1]:
            layer = layers[name]
            layer.zero_grad()
            x.grad = None
            start = time.perf_counter()
            y = layer(x)
            middle = time.perf_counter()
            y.backward(gradient)
            end = time.perf_counter()
            if number > 0:
                for each, spent in zip(PASSES, (middle - start, end - middle), strict=True):
                    seconds[name][each].append(spent)
    return seconds


def layouts(sizes: LayerSizes, rounds: int) -> list[dict[str, Any]]:
    """Each step of the forward pass with the layouts that the shortest path has, what it takes so
    (changes before it included), and in rows.
    """
    names: list[str] = []
    steps: list[dict[tuple[str, str], float]] = []
    changes: list[float] = []
    for step in layer_steps(sizes):
        costs: dict[tuple[str, str], float] = {}
        for lie, call in step.calls.items():
            spent = _median(call, rounds)
            costs[lie[0], lie[1]] = min(spent, costs.get((lie[0], lie[1]), spent))
        names.append(step.name)
        steps.append(costs)
        changes.append(_median(change_call(*step.takes), rounds))
    changes.append(changes[0])  # of the result, which is as large as what came
    found, held = [], ROWS
    for name, costs, change, (taken, given) in zip(
        names, steps, changes, shortest(steps, changes).layouts, strict=False
    ):
        spent = costs[taken, given] + (change if taken != held else 0.0)
        rows = costs[ROWS, ROWS]
        found.append({"step": name, "takes": taken, "gives": given, "spent": spent, "rows": rows})
        held = given
    return found


def _timed(stretch: Stretch, rounds: int) -> dict[str, Any]:
    """A stretch as a JSON value, with the sum of its operators' median seconds."""
    return {
        "name": stretch.name,
        "class": stretch.kind,
        "flops": stretch.flops,
        "bound": stretch.bound_bytes,
        "moved": stretch.moved_bytes,
        "seconds": sum(_seconds(access.operator, rounds) for access in stretch.accesses),
    }


def _seconds(operator: Operator, rounds: int) -> float:
    """Of one call on real tensors."""
    assert operator.call is not None
    return _median(operator.call.on_real_tensors(1)[0], rounds)


def _median(call: Callable[[], object], rounds: int) -> float:
    """Seconds of one call; the first one is not counted."""
    return statistics.median([own_seconds(call) for _ in range(rounds + 1)][1:])
