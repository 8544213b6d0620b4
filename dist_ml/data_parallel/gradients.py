"""All gradients in one flat buffer, so that one collective, or a few, can reduce them."""

from collections.abc import Callable, Iterable

import torch

from dist_ml.errors import ConfigError
from dist_ml.nn.gradient_sink import GradientSink
from dist_ml.partition import Range

Allocator = Callable[[int, torch.dtype], torch.Tensor]

# Sums that every step must reduce anyway; carried behind the gradients they cost no message of
# their own.
TAIL = ("loss", "correct")


class FlatGradients:
    """One buffer [all parameters in order, tail]; each parameter's `.grad` is a view into it.

    A layer that puts a `gradient_sink` on its parameter writes into the view itself. For all others
    autograd adds into the view, so that it must be zeroed before each step and a `.grad` never
    replaced: no `zero_grad(set_to_none=True)` on the optimizer. `allocate(n, dtype)` says where the
    buffer lives and returns zeros (default: ordinary memory; a shared window of the node, for
    example, saves the copies of a reduction).
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], allocate: Allocator | None = None
    ) -> None:
        self.parameters = list(parameters)
        dtypes = {parameter.dtype for parameter in self.parameters}
        if len(dtypes) != 1:
            raise ConfigError(
                "parameters must have one dtype to share a gradient buffer, not "
                f"{sorted(map(str, dtypes))}"
            )
        self.num_words = sum(parameter.numel() for parameter in self.parameters)
        allocate = allocate or (lambda n, dtype: torch.zeros(n, dtype=dtype))
        self.buffer = allocate(self.num_words + len(TAIL), dtypes.pop())
        self.flat = self.buffer[: self.num_words]
        self.tail = self.buffer[self.num_words :]
        self.ranges: list[Range] = []
        self._sinks: list[GradientSink] = []
        self._added: list[torch.Tensor] = [self.tail]
        self._attach()

    def begin(self) -> None:
        """Ready for the next step's sums."""
        for sink in self._sinks:
            sink.clear()
        torch._foreach_zero_(self._added)

    def settle(self) -> None:
        """All of the buffer holds sums, also of parameters that no backward pass of this step has
        reached.
        """
        for sink in self._sinks:
            sink.settle()

    def on_ready(self, call: Callable[[int], None]) -> None:
        """`call(i)` each time a backward pass has put in the gradient of parameter `i` (an index
        into `parameters`, `ranges`).

        Torch's hook also runs where a layer wrote into its sink and left nothing to accumulate.
        """
        for index, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: call(index))  # type: ignore[no-untyped-call]

    def scale(self, factor: float) -> None:
        """Multiply the whole gradient."""
        self.flat.mul_(factor)

    def norm(self) -> float:
        """The Euclidean norm of the whole gradient, NaN or infinite if any element is."""
        return float(torch.linalg.vector_norm(self.flat))

    def _attach(self) -> None:
        start = 0
        for parameter in self.parameters:
            where = Range(start, start + parameter.numel())
            view = self.flat[where.slice].view_as(parameter)
            parameter.grad = view
            self.ranges.append(where)
            sink = getattr(parameter, "gradient_sink", None)
            if sink is None:
                self._added.append(view)
            else:
                sink.attach(view)
                self._sinks.append(sink)
            start = where.stop
