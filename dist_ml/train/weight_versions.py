"""Two versions of this rank's weights, for schedules whose steps run into each other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dist_ml.data_parallel.flat_state import FlatState, state_of
from dist_ml.pipeline_parallel.schedule import Action, Kind


class WeightVersions:
    """Step t passes batch t through W(t-1), and begins batch t + 1 on W(t); W(t+1) is what the
    optimizer makes of W(t) with the gradient of batch t.

        before the update    older W(t-1)    newer W(t)
        after it             older W(t)      newer W(t+1), in the memory of W(t-1)

    So the memory of a version stays as it is from the first forward pass that reads it to the last
    backward pass. The model's `parameters` are pointed at one of the two, at the newer one between
    steps. The optimizer steps `stepped`, parameters of its own on the newer version, with the
    gradients that the model's have by now: writing into the model's would tell autograd that what
    forward passes have kept is stale.

    Memory: one more copy of the weights, from the first update on. Cost: that copy written once a
    step, and a pointer a parameter whenever the version changes.

    Source: Narayanan et al., "Memory-efficient pipeline-parallel DNN training", ICML 2021, section
    3.1.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._older = [parameter.data for parameter in self._parameters]
        self._newer = self._older
        self._in_use = self._newer
        self.stepped = [torch.nn.Parameter(parameter.data) for parameter in self._parameters]
        for own, parameter in zip(self.stepped, self._parameters, strict=True):
            own.grad = parameter.grad

    def selecting(
        self, methods: Mapping[Kind, Callable[[Action], None]], num_microbatches: int
    ) -> dict[Kind, Callable[[Action], None]]:
        """`methods`, each on the version that its micro-batch passes through: from
        `num_microbatches` on they are of the following batch.
        """

        def selected(method: Callable[[Action], None]) -> Callable[[Action], None]:
            def run(action: Action) -> None:
                ahead = action.microbatch >= num_microbatches
                self._use(self._newer if ahead else self._older)
                method(action)

            return run

        return {kind: selected(method) for kind, method in methods.items()}

    def update(self, step: Callable[[], Any]) -> None:
        """The next version: what `step` makes of the newer one, in `stepped`."""
        if self._older is self._newer:
            free = [tensor.clone() for tensor in self._newer]
        else:
            free = self._older
            torch._foreach_copy_(free, self._newer)
        self._older, self._newer = self._newer, free
        for own, tensor in zip(self.stepped, self._newer, strict=True):
            own.data = tensor
        step()
        self._in_use = []  # what was the older version has become the newer one
        self._use(self._newer)

    def _use(self, version: list[torch.Tensor]) -> None:
        if self._in_use is not version:
            for parameter, tensor in zip(self._parameters, version, strict=True):
                parameter.data = tensor
            self._in_use = version

    def tensors(self) -> list[FlatState]:
        """The older version, which the next step still needs, in place, where it is another than
        the newer, which is the model's.
        """
        return [] if self._older is self._newer else state_of("older/{}", self._older)

    def state_dict(self) -> dict[str, Any]:
        return {"num_versions": 1 if self._older is self._newer else 2}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with as many versions as when `state_dict` was called, with one where that was of
        another schedule; `tensors` has the place of the older.
        """
        self._older = self._newer
        if state.get("num_versions") == 2:
            self._older = [tensor.clone() for tensor in self._newer]
