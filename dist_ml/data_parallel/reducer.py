"""The seam between the trainer and gradient exchange: what is to be summed over the data axis, and
when it may start.
"""

from typing import Any, Protocol


class GradientReducer(Protocol):
    """Turns each rank's gradients into their sum over the data axis.

    The trainer calls `start` before the step's last backward pass, in which gradients become final
    one after the other and may be sent at once, and `finish` after it, which returns when the whole
    buffer, tail included, holds the sum on all ranks. `diagnostics` are figures of the last step
    for the metrics; {} for none. `state_dict` is whatever a checkpoint must carry for the next
    steps to be the same (residuals, thresholds); {} for none.
    """

    def start(self) -> None: ...
    def finish(self) -> None: ...
    def diagnostics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
