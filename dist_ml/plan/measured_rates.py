"""Measures what a rank computes: products, the operators of some models, optimizers; each with its
operands in the cache, and in memory. Collective: all ranks of a node measure at once.

Cold operands are as many copies, used in turn, as don't fit into the cache. Of a product that is
the weight, or its gradient, since activations have just been made.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig
from dist_ml.models import Samples, build_model, choose_objective
from dist_ml.plan.curves import PRODUCT_SIZES, Curve, Products
from dist_ml.plan.machine import LAYOUTS, Rates
from dist_ml.plan.model_work import block_works, objective_work
from dist_ml.plan.operators import Operator
from dist_ml.plan.timing import in_turn, slowest
from dist_ml.train.optimizer import OPTIMIZERS, build_optimizer

_MOST_FLOPS = 1 << 31  # of a product that is measured
_MOST_COPIES = 256
_SMALL_BYTES = 1 << 16  # that the nearest caches hold whatever else a step does
_PARAMETERS = (1 << 10, 1 << 16, 1 << 20, 1 << 23)
_USUAL_CACHES = {2: 1 << 20, 3: 32 << 20}  # bytes by level, where the system doesn't say
# Models whose operators are measured, each at a few sizes of a micro-batch.
_MODELS = (
    (ModelConfig("mlp", hidden=(256, 1024), activation="gelu"), Samples((64,), 16), (8, 128, 1024)),
    (ModelConfig("mlp", hidden=(512,), activation="relu"), Samples((64,), 16), (16, 1024)),
    (
        ModelConfig("transformer", activation="gelu", dropout=0.1, width=256, depth=1, heads=4),
        Samples((64,), 256, "next_token"),
        (1, 8, 32),
    ),
    (ModelConfig("cnn"), Samples((1, 16, 16), 10), (4, 64)),
)

# How often the same is made, on operands of its own, and what it is.
Makes = Callable[[int], list[Callable[[], object]]]


def caches() -> tuple[int, int]:
    """Bytes of a core's own last cache, and of the one that cores share."""
    found = {}
    for level, usual in _USUAL_CACHES.items():
        file = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size")
        text = file.read_text().strip() if file.exists() else ""
        known = text.endswith("K") and text[:-1].isdecimal()
        found[level] = 1024 * int(text[:-1]) if known else usual
    return found[2], found[3]


def measure_products(comm: Communicator) -> tuple[dict[str, Products], dict[str, Products]]:
    """Warm and cold, by layout."""
    warm, cold = ({layout: Products({}) for layout in LAYOUTS} for _ in range(2))
    sizes = product(LAYOUTS, PRODUCT_SIZES, PRODUCT_SIZES, PRODUCT_SIZES)
    for layout, m, n, k in sizes:
        if 2 * m * n * k > _MOST_FLOPS:
            continue
        num_bytes = 4 * n * (m if layout == "TN" else k)
        both = _both(comm, partial(_product_calls, layout, m, n, k), num_bytes)
        warm[layout].seconds[m, n, k], cold[layout].seconds[m, n, k] = both
    return warm, cold


def measure_operators(comm: Communicator) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Of all kinds but products."""
    warm: dict[str, dict[float, float]] = {}
    cold: dict[str, dict[float, float]] = {}
    for operator in _operators():
        assert operator.call is not None
        size = operator.flops or operator.num_bytes
        both = _both(comm, operator.call.on_real_tensors, operator.num_bytes)
        warm.setdefault(operator.name, {})[size] = both[0]
        cold.setdefault(operator.name, {})[size] = both[1]
    return _curves(warm), _curves(cold)


def measure_optimizers(comm: Communicator) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Over the parameters that they update."""
    warm: dict[str, dict[float, float]] = {name: {} for name in OPTIMIZERS}
    cold: dict[str, dict[float, float]] = {name: {} for name in OPTIMIZERS}
    for name, n in product(OPTIMIZERS, _PARAMETERS):
        both = _both(comm, partial(_updates, name, n), 12 * n)
        warm[name][n], cold[name][n] = both
    return _curves(warm), _curves(cold)


def measure_rates(comm: Communicator, tell: Callable[[str], None]) -> tuple[Rates, Rates]:
    """Warm and cold."""
    tell("matrix products")
    products = measure_products(comm)
    tell("operators")
    curves = measure_operators(comm)
    tell("optimizers")
    optimizers = measure_optimizers(comm)
    warm, cold = zip(products, curves, optimizers, strict=True)
    return Rates(*warm), Rates(*cold)


def _both(comm: Communicator, make: Makes, num_bytes: int) -> tuple[float, float]:
    """Seconds of a call with its operands of so many bytes in the cache, and in memory."""
    copies = min(_MOST_COPIES, -(-2 * caches()[1] // (comm.size * max(1, num_bytes))))
    warm = slowest(comm, make(1)[0])
    if num_bytes <= _SMALL_BYTES or copies == 1:
        return warm, warm
    return warm, max(warm, slowest(comm, in_turn(make(copies))))


def _product_calls(layout: str, m: int, n: int, k: int, times: int) -> list[Callable[[], object]]:
    """[m, k] x [k, n]: y = x W^T, dx = dy W, and dW += dy^T x."""
    if layout == "TN":
        left, right = torch.rand(k, m).T, torch.rand(k, n)
        gradients = (torch.ones(m, n) for _ in range(times))  # zeros would be no memory yet
        return [partial(torch.addmm, c, left, right, out=c) for c in gradients]
    left, out = torch.rand(m, k), torch.empty(m, n)
    shape = (n, k) if layout == "NT" else (k, n)
    weights = [torch.rand(shape)]
    weights += [weights[0].clone() for _ in range(times - 1)]
    return [
        partial(torch.mm, left, weight.T if layout == "NT" else weight, out=out)
        for weight in weights
    ]


def _operators() -> Iterator[Operator]:
    """Each operator of the models once a size, without products."""
    found: set[tuple[str, int]] = set()
    for config, samples, sizes in _MODELS:
        with torch.device("meta"):
            model = build_model(config, samples, 0)
        text = samples.task == "next_token"
        inputs = torch.zeros(1, samples.num_features, dtype=torch.int64 if text else torch.float32)
        targets = torch.zeros((1, samples.num_features) if text else (1,), dtype=torch.int64)
        objective = choose_objective(config, samples.task, samples.items)
        for b in sizes:
            works, outputs = block_works(model, inputs, b, autocast=False)
            works.append(objective_work(objective, outputs, targets, b))
            passes = (one for work in works for one in (work.forward, work.backward))
            for operator in (each for one in passes for each in one.operators):
                size = (operator.flops or operator.num_bytes).bit_length()
                if operator.product is None and (operator.name, size) not in found:
                    found.add((operator.name, size))
                    yield operator


def _updates(name: str, n: int, times: int) -> list[Callable[[], object]]:
    config = OptimizerConfig(name, lr=1e-3, weight_decay=0.01, momentum=0.9 * (name == "sgd"))
    calls: list[Callable[[], object]] = []
    for _ in range(times):
        parameter = torch.nn.Parameter(torch.zeros(n))
        parameter.grad = torch.full((n,), 1e-3)
        optimizer = build_optimizer(config, [parameter])
        optimizer.step()  # the first makes its moments
        calls.append(optimizer.step)
    return calls


def _curves(samples: dict[str, dict[float, float]]) -> dict[str, Curve]:
    return {name: Curve.through(found) for name, found in samples.items()}
