"""All gradients in one flat buffer, so that one collective, or a few, can reduce them."""

from collections.abc import Callable, Iterable, Sequence

import torch

from dist_ml.errors import ConfigError
from dist_ml.nn.gradient_sink import GradientSink
from dist_ml.partition import Range

Allocator = Callable[[int, torch.dtype], torch.Tensor]


class GradientBuffer:
    """The gradients of `parameters` one after the other in `flat`, whoever puts them there, and
    `slots`, sums of other things that travel with them.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], flat: torch.Tensor, slots: torch.Tensor
    ) -> None:
        self.parameters = list(parameters)
        self.ranges = places(self.parameters)
        self.num_words = flat.numel()
        self.flat, self.slots = flat, slots

    def begin(self) -> None:
        """Ready for the next step's sums."""

    def complete(self) -> None:
        """All of `flat` holds sums, also of parameters that no backward pass has reached."""

    def on_final(self, call: Callable[[int], None]) -> None:
        """`call(i)` each time a backward pass has put in the gradient of parameter `i` (an index
        into `parameters`, `ranges`).
        """
        call_when_final(self.parameters, call)


class FlatGradients(GradientBuffer):
    """One buffer [all parameters in order, slots]; each parameter's `.grad` is a view into it.

    The `num_slots` slots hold sums that every step reduces anyway (loss, metrics): behind the
    gradients they cost no message of their own.

    A layer that puts a `gradient_sink` on its parameter writes into the view itself. For all others
    autograd adds into the view, so that it must be zeroed before each step and a `.grad` never
    replaced: no `zero_grad(set_to_none=True)` on the optimizer. Where somebody else sees to both,
    `attach_sinks=False` leaves all layers to autograd. `allocate(n, dtype)` says where the
    buffer lives and returns zeros (default: ordinary memory; a shared window of the node, for
    example, saves the copies of a reduction).
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        num_slots: int,
        allocate: Allocator | None = None,
        attach_sinks: bool = True,
    ) -> None:
        parameters = list(parameters)
        dtypes = {parameter.dtype for parameter in parameters}
        if len(dtypes) != 1:
            raise ConfigError(
                "parameters must have one dtype to share a gradient buffer, not "
                f"{sorted(map(str, dtypes))}"
            )
        num_words = places(parameters)[-1].stop
        allocate = allocate or (lambda n, dtype: torch.zeros(n, dtype=dtype))
        self.buffer = allocate(num_words + num_slots, dtypes.pop())
        super().__init__(parameters, self.buffer[:num_words], self.buffer[num_words:])
        self._sinks: list[GradientSink] = []
        self._added: list[torch.Tensor] = [self.slots]
        self._attach(attach_sinks)

    def begin(self) -> None:
        for sink in self._sinks:
            sink.clear()
        torch._foreach_zero_(self._added)

    def complete(self) -> None:
        for sink in self._sinks:
            sink.zero_if_empty()

    def _attach(self, sinks: bool) -> None:
        for parameter, where in zip(self.parameters, self.ranges, strict=True):
            view = self.flat[where.slice].view_as(parameter)
            parameter.grad = view
            sink = getattr(parameter, "gradient_sink", None) if sinks else None
            if sink is None:
                self._added.append(view)
            else:
                sink.attach(view)
                self._sinks.append(sink)


def places(parameters: Sequence[torch.nn.Parameter]) -> list[Range]:
    """Where each parameter's elements lie in the flat vector of all, in order."""
    ranges, start = [], 0
    for parameter in parameters:
        ranges.append(Range(start, start + parameter.numel()))
        start += parameter.numel()
    return ranges


def call_when_final(parameters: Sequence[torch.nn.Parameter], call: Callable[[int], None]) -> None:
    """`call(i)` at the end of each backward pass through parameter i; torch's hook also runs where
    a layer wrote into its sink and left nothing to accumulate.
    """
    for index, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, index=index: call(index))  # type: ignore[no-untyped-call]
