"""Has the loss stopped falling?"""

from typing import Any

_FALL = 0.01  # relative fall of the mean loss below which it counts as a plateau


class Plateau:
    """Tells, every `window` steps (0: never), whether the mean loss has fallen by less than a
    hundredth since the window before.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._losses: list[float] = []
        self._before: float | None = None

    def reached(self, loss: float) -> bool:
        """One step's loss, the same on all ranks."""
        if self._window == 0:
            return False
        self._losses.append(loss)
        if len(self._losses) < self._window:
            return False
        mean = sum(self._losses) / len(self._losses)
        before, self._before, self._losses = self._before, mean, []
        return before is not None and mean > before * (1 - _FALL)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._before = list(state["losses"]), state["before"]
