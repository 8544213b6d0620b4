"""The seam between a training step and gradient exchange: what is summed over the data axis, and
when it may start.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from dist_ml.data_parallel.flat_state import FlatState
from dist_ml.data_parallel.reduced_gradients import ReducedGradients


class GradientReducer(ABC):
    """Turns each rank's gradients into their sum over the data axis.

        begin()             before a step's first micro-batch: gradients and `slots` are zero
        after_backward(m)   each time a backward pass of micro-batch m, or a part of it, is over
        start()             before the last one: slots are final, gradients become so one by one
        finish()            after it: everything is summed; `slots` hold sums, too

    `slots` are a step's other sums (loss, metrics), float [num_slots]: each rank adds its own part,
    what is of a micro-batch to `slots_of` that.
    All ranks of the axis call these together, in this order, every step.
    """

    slots: torch.Tensor

    @abstractmethod
    def begin(self) -> None:
        """Ready for the next step's sums."""

    def slots_of(self, microbatch: int) -> torch.Tensor:  # noqa: ARG002
        """Where the sums of a micro-batch are added, float [num_slots]."""
        return self.slots

    def after_backward(self, microbatch: int) -> None:  # noqa: B027 - most add where gradients lie
        """Gradients of `microbatch` have been put in: all of those that will be, where the pass was
        a whole one.
        """

    def start(self) -> None:  # noqa: B027 - only what overlaps cares
        """From here on a gradient is final once the backward pass has put it in, and the slots are,
        which travel with the first gradients.
        """

    @abstractmethod
    def finish(self) -> ReducedGradients:
        """Everything summed. Collective; raises what went wrong in the exchange."""

    def diagnostics(self) -> dict[str, float]:
        """Figures of the last step, for the metrics."""
        return {}

    def tensors(self) -> list[FlatState]:
        """What the next steps depend on besides parameters and has an element for each of theirs
        (residuals), in place.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """The rest of it, in numbers that JSON takes: counts, thresholds."""
        return {}

    def load_state_dict(self, state: dict[str, Any], own: bool = True) -> None:  # noqa: ARG002
        """Go on from what `state_dict` returned; where that was on another mesh (`own` false),
        what only holds there is found anew.
        """
        assert not state, f"{type(self).__name__} has no state, but got {list(state)}"

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """End threads, give back communicators and the memory that gradients lie in; nothing may be
        under way. Collective.
        """


class ReducerWrapper(GradientReducer):
    """Adds something to `inner`; whatever a subclass doesn't say is the inner one's."""

    def __init__(self, inner: GradientReducer) -> None:
        self._inner = inner
        self.slots = inner.slots

    def begin(self) -> None:
        self._inner.begin()

    def slots_of(self, microbatch: int) -> torch.Tensor:
        return self._inner.slots_of(microbatch)

    def after_backward(self, microbatch: int) -> None:
        self._inner.after_backward(microbatch)

    def start(self) -> None:
        self._inner.start()

    def finish(self) -> ReducedGradients:
        return self._inner.finish()

    def diagnostics(self) -> dict[str, float]:
        return self._inner.diagnostics()

    def tensors(self) -> list[FlatState]:
        return self._inner.tensors()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any], own: bool = True) -> None:
        self._inner.load_state_dict(state, own)

    def close(self) -> None:
        self._inner.close()
