"""Put a model's linear layers on tuned kernels, and measure which kernels those are."""

from collections.abc import Iterable

from torch import nn

from dist_ml.comm.communicator import Communicator
from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import FALLBACK, Tuner
from dist_ml.nn.linear import SINK_WORDS, TunedLinear


def use_kernel(model: nn.Module, kernel: str) -> None:
    """Put the plain `nn.Linear` layers inside `model` on `kernel`; the same parameters, and the
    same keys in its state.

    `auto` uses what this machine's cache knows and torch for all else; `tune` fills it. `torch`
    keeps torch's products, and only has large layers write their gradients in place. No
    communication.
    """
    if kernel != kernels.AUTO:
        kernels.named(kernel)
    tuner = Tuner()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            worthwhile = kernel != FALLBACK or (
                type(child) is nn.Linear and child.weight.numel() >= SINK_WORDS
            )
            if type(child) is nn.Linear and worthwhile:
                setattr(parent, name, TunedLinear(child, kernel, tuner))


def tune(model: nn.Module, batch_sizes: Iterable[int], comm: Communicator) -> None:
    """Measure the `auto` layers' shapes at `batch_sizes` rows of input, where this machine's cache
    lacks them. Collective.

    One rank of each node measures, in a child process, while the others wait.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, TunedLinear) and layer.kernel == kernels.AUTO
    ]
    if not layers:
        return
    node = comm.split_by_node()
    if node.rank == 0:
        Tuner().tune(
            shape for layer in layers for rows in batch_sizes for shape in layer.shapes(rows)
        )
    node.barrier()
    node.free()
    for layer in layers:
        layer.choose_again()
