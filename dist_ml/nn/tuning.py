"""Make linear layers on tuned kernels, and measure which kernels those are."""

from collections.abc import Callable, Iterable

from torch import nn

from dist_ml.comm.communicator import Communicator
from dist_ml.kernels import kernels
from dist_ml.kernels.tuner import FALLBACK, Tuner
from dist_ml.nn.linear import SINK_WORDS, TunedLinear


def linear_factory(kernel: str) -> Callable[[str, int, int], nn.Linear]:
    """What makes a model's linear layers, (name, inputs, outputs), on `kernel`; parameters and
    their names are those of torch's layer. `ConfigError` for a kernel that can't run here.

    `auto` uses what this machine's cache knows and torch for all else; `tune` fills it. `torch`
    keeps torch's products, and only has large layers write their gradients in place. No
    communication.
    """
    if kernel != kernels.AUTO:
        kernels.named(kernel)
    tuner = Tuner()

    def make(name: str, inputs: int, outputs: int) -> nn.Linear:  # noqa: ARG001
        plain = nn.Linear(inputs, outputs)
        worthwhile = kernel != FALLBACK or plain.weight.numel() >= SINK_WORDS
        return TunedLinear(plain, kernel, tuner) if worthwhile else plain

    return make


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
