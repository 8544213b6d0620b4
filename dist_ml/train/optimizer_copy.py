"""What an optimizer's step changes, kept so that the step can be taken back to the last bit."""

from typing import Any

import torch


class OptimizerCopy:
    """A copy of the parameters and state of `optimizer`, made by the first `save`.

    Memory: as much as parameters and state take (SGD: 1, with momentum 2, AdamW 3 times the
    parameters). Time: one pass over them each for `save` and `restore`. An arithmetic inverse of
    the step would need neither, but rounds.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._copies: list[torch.Tensor] = []
        self._states: list[dict[str, Any]] = [{} for _ in self._parameters]

    @torch.no_grad()
    def save(self) -> None:
        if not self._copies:
            self._copies = [torch.empty_like(parameter) for parameter in self._parameters]
        torch._foreach_copy_(self._copies, self._parameters)
        for parameter, saved in zip(self._parameters, self._states, strict=True):
            _copy(self._optimizer.state.get(parameter, {}), saved)

    @torch.no_grad()
    def restore(self) -> None:
        assert self._copies, "nothing was saved"
        torch._foreach_copy_(self._parameters, self._copies)
        for parameter, saved in zip(self._parameters, self._states, strict=True):
            _copy(saved, self._optimizer.state[parameter])


def _copy(source: dict[str, Any], target: dict[str, Any]) -> None:
    """`target` as `source` is, in tensors of its own: those that it has, where they fit."""
    for key in target.keys() - source.keys():
        del target[key]
    for key, value in source.items():
        if not isinstance(value, torch.Tensor):
            target[key] = value
        elif isinstance(target.get(key), torch.Tensor):
            target[key].copy_(value)
        else:
            target[key] = value.clone()
