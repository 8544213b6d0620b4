"""All gradients in one flat buffer, so that one collective, or a few, can reduce them."""

from collections.abc import Callable, Iterable

import torch

from dist_ml.errors import ConfigError
from dist_ml.partition import Range

Allocator = Callable[[int, torch.dtype], torch.Tensor]

# Sums that every step must reduce anyway; carried behind the gradients they cost no message of their own.
TAIL = ("loss", "correct")


class FlatGradients:
    """One buffer [all parameters in order, tail]; each parameter's `.grad` is a view into it.

    Autograd adds into gradients that exist already, so the buffer must be zeroed before each step and a `.grad` never replaced:
    no `zero_grad(set_to_none=True)` on the optimizer. `allocate(n, dtype)` says where the buffer lives and returns zeros
    (default: ordinary memory; a shared window of the node, for example, saves the copies of a reduction).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], allocate: Allocator | None = None) -> None:
        self.parameters = list(parameters)
        dtypes = {parameter.dtype for parameter in self.parameters}
        if len(dtypes) != 1:
            raise ConfigError(f"parameters must have one dtype to share a gradient buffer, not {sorted(map(str, dtypes))}")
        self.num_words = sum(parameter.numel() for parameter in self.parameters)
        allocate = allocate or (lambda n, dtype: torch.zeros(n, dtype=dtype))
        self.buffer = allocate(self.num_words + len(TAIL), dtypes.pop())
        self.flat = self.buffer[: self.num_words]
        self.tail = self.buffer[self.num_words :]
        self.ranges = self._attach()

    def zero(self) -> None:
        """Ready for the next step's sums."""
        self.buffer.zero_()

    def norm(self) -> float:
        """The Euclidean norm of the whole gradient, NaN or infinite if any element is."""
        return float(torch.linalg.vector_norm(self.flat))

    def _attach(self) -> list[Range]:
        ranges, start = [], 0
        for parameter in self.parameters:
            where = Range(start, start + parameter.numel())
            parameter.grad = self.flat[where.slice].view_as(parameter)
            ranges.append(where)
            start = where.stop
        return ranges
