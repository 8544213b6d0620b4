"""The state of torch's optimizers, parameter by parameter, whatever part of them a rank updates."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dist_ml.data_parallel.flat_state import FlatState, Rows
from dist_ml.partition import Range


class OptimizerState:
    """Of an `optimizer` whose parameters are the ranges `owned` of the flat vector of this rank's
    parameters: each of these one, or one shard of all. `rows`: as `FlatState` has it.

    Moments have an element for each element; counters are what all parameters have alike.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, owned: Sequence[Range], rows: Rows | None
    ) -> None:
        (group,) = optimizer.param_groups
        self._parameters: list[torch.Tensor] = group["params"]
        self._state: dict[torch.Tensor, dict[str, Any]] = optimizer.state
        self._owned, self._rows = owned, rows
        self._kind = type(optimizer).__name__

    def tensors(self) -> list[FlatState]:
        """The moments, in place."""
        moments = self.state_dict()["moments"]
        return [
            FlatState(f"optimizer/{{}}/{key}", where, self._state[p][key].view(-1), self._rows)
            for p, where in zip(self._parameters, self._owned, strict=True)
            for key in moments
        ]

    def state_dict(self) -> dict[str, Any]:
        """Whose it is, the names of the moments, and the counters; both none before the first
        update.
        """
        state = self._state.get(self._parameters[0], {})
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        return {
            "kind": self._kind,
            "moments": [key for key, value in tensors.items() if value.ndim > 0],
            "counters": {key: value.item() for key, value in tensors.items() if value.ndim == 0},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counters, and moments of zero for `tensors` to show."""
        self._state.clear()
        for parameter in self._parameters:
            if state["moments"] or state["counters"]:
                moments = {key: torch.zeros_like(parameter) for key in state["moments"]}
                counters = {key: torch.tensor(n) for key, n in state["counters"].items()}
                self._state[parameter] = {**counters, **moments}
