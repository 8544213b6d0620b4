"""Measures a `Processor`: products, the operators of some models, optimizers, and what whole steps
take beside them. Collective: all ranks of a node measure at once, as they compute at once.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import OptimizerConfig
from dist_ml.measure.memory import peak_bytes
from dist_ml.models import Samples, build_model, choose_objective
from dist_ml.plan.constants import with_constants
from dist_ml.plan.machine import PRODUCT_SIZES, Curve, Processor, Products
from dist_ml.plan.model_work import block_works, objective_work
from dist_ml.plan.operators import Operator
from dist_ml.train.optimizer import OPTIMIZERS, build_optimizer

_MOST_FLOPS = 1 << 31  # of a product that is measured
_ROUND_SECONDS = 2e-3
_ROUNDS = 5
_PARAMETERS = (1 << 10, 1 << 16, 1 << 20, 1 << 23)
_BYTES = (64, 4096, 1 << 16, 1 << 20, 1 << 23, 1 << 25)
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


def calibrate(comm: Communicator, tell: Callable[[str], None]) -> Processor:
    """Half a minute. The slowest rank's seconds count."""
    base_bytes = peak_bytes()
    tell("matrix products")
    products = {sizes: _slowest(comm, call) for sizes, call in _product_calls()}
    tell("operators")
    samples: dict[str, dict[float, float]] = {}
    for operator in _operators():
        assert operator.call is not None
        size = operator.flops or operator.num_bytes
        seconds = _slowest(comm, operator.call.on_real_tensors())
        samples.setdefault(operator.name, {})[size] = seconds
    curves = {name: Curve.through(found) for name, found in samples.items()}
    tell("optimizers")
    optimizers = {
        name: Curve.through({n: _slowest(comm, _update(name, n)) for n in _PARAMETERS})
        for name in OPTIMIZERS
    }
    tell("messages")
    processor = Processor(
        comm.size,
        torch.get_num_threads(),
        Products(products),
        curves,
        optimizers,
        allreduces={comm.size: _allreduces(comm, "auto")} if comm.size > 1 else {},
        collectives={comm.size: _allreduces(comm, "native")} if comm.size > 1 else {},
        message=_messages(comm) if comm.size > 1 else None,
        base_bytes=base_bytes,
    )
    tell("steps")
    return with_constants(processor, comm)


def _product_calls() -> Iterator[tuple[tuple[int, int, int], Callable[[], object]]]:
    for m, n, k in product(PRODUCT_SIZES, repeat=3):
        if 2 * m * n * k <= _MOST_FLOPS:
            x, weight = torch.rand(m, k), torch.rand(n, k)
            yield (m, n, k), partial(torch.mm, x, weight.T)


def _operators() -> list[Operator]:
    """Each operator of the models once a size, without products."""
    found: dict[tuple[str, int], Operator] = {}
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
            for work in works:
                for operator in (*work.forward.operators, *work.backward.operators):
                    if operator.product is None:
                        size = operator.flops or operator.num_bytes
                        found.setdefault((operator.name, size.bit_length()), operator)
    return list(found.values())


def _update(name: str, n: int) -> Callable[[], object]:
    parameter = torch.nn.Parameter(torch.rand(n))
    parameter.grad = torch.rand(n)
    config = OptimizerConfig(name, lr=1e-3, weight_decay=0.01, momentum=0.9 * (name == "sgd"))
    return build_optimizer(config, [parameter]).step


def _allreduces(comm: Communicator, name: str) -> Curve:
    member = family.make(name, comm)
    found = {}
    for num_bytes in _BYTES:
        x = member.allocate(num_bytes // 4, torch.float32).zero_()
        found[float(num_bytes)] = _slowest(comm, partial(member, x), together=True)
    member.free()
    return Curve.through(found)


def _messages(comm: Communicator) -> Curve:
    """Half of what a message to the next rank and one back take."""
    found = {}
    for num_bytes in _BYTES:
        x = torch.zeros(num_bytes // 4)

        def there_and_back(x: torch.Tensor = x) -> None:
            if comm.rank == 0:
                comm.send(x, 1)
                comm.receive(x, 1)
            elif comm.rank == 1:
                comm.receive(x, 0)
                comm.send(x, 0)

        found[float(num_bytes)] = _slowest(comm, there_and_back, together=True) / 2
    return Curve.through(found)


def _slowest(comm: Communicator, call: Callable[[], object], together: bool = False) -> float:
    """Median seconds of a call, of the slowest rank; `together`: all ranks call as often."""
    call()
    once = torch.tensor([max(1e-7, _taken(call, 1))], dtype=torch.float64)
    if together:
        comm.allreduce(once, "max")
    repeats = max(1, int(_ROUND_SECONDS / once.item()))
    comm.barrier()
    median = statistics.median(_taken(call, repeats) for _ in range(_ROUNDS))
    seconds = torch.tensor([median], dtype=torch.float64)
    comm.allreduce(seconds, "max")
    return seconds.item()


def _taken(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
