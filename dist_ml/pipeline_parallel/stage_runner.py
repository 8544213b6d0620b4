"""What the actions of a schedule do on one rank: forward and backward passes of its stages, one
micro-batch at a time.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dist_ml.datasets.dataset import Batch
from dist_ml.measure.timer import Phases
from dist_ml.models.blocks import INPUTS, bf16_products, in_full
from dist_ml.pipeline_parallel.backward import Enter, SplitBackward
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Action, Kind
from dist_ml.pipeline_parallel.stage_graph import Edge, Stage


class MicroBatches(Protocol):
    """What a step is computed on."""

    def load(self, m: int) -> Batch:
        """The samples of micro-batch m."""

    def enter(self, m: int) -> None:
        """The next passes are of micro-batch m: layers that draw random numbers are told."""

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool) -> torch.Tensor:
        """The micro-batch's part of the loss; `count` enters it, and metrics, in the step's
        sums.
        """


@dataclass
class _Kept:
    """What a forward pass leaves for the backward pass of the same micro-batch and stage."""

    received: list[tuple[Edge, torch.Tensor]]
    outputs: list[tuple[Edge, torch.Tensor]] = field(default_factory=list)
    loss: torch.Tensor | None = None
    split: SplitBackward | None = None


class StageRunner:
    """Runs the actions of this rank's `stages`.

    With `recompute`, a stage keeps what it received and nothing else, and runs forward once more
    before its backward pass. `final()` is called before the action that completes the gradients of
    all stages of this rank. `timed_actions` are those of the last step: when each action computed,
    waiting left out, in seconds of `time.perf_counter`.

    Of an asynchronous schedule `actions` are those of a step that finds the pipe empty. Its forward
    passes of the batch that follows are kept for the next step, which doesn't run them again; a
    step without a following batch empties the pipe.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        actions: Sequence[Action],
        messages: StageMessages,
        batches: MicroBatches,
        phases: Phases,
        *,
        autocast: bool = False,
        recompute: bool = False,
        final: Callable[[], None] = lambda: None,
    ) -> None:
        self._stages = stages
        self._messages = messages
        self._batches = batches
        self._phases = phases
        self._autocast = autocast
        self._recompute = recompute
        self._final = final
        self._last = next((a for a in reversed(actions) if a.kind in ("B", "W")), None)
        self._runs = {number: stages[number].runner() for number in {a.stage for a in actions}}
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._sizes: Sequence[int] = ()
        self.peak_kept = 0  # micro-batches of a stage whose activations were held at once
        self.timed_actions: list[TimedAction] = []
        self._timed: list[TimedAction] = []  # of the step that runs
        self._start = 0.0

    @property
    def methods(self) -> Mapping[Kind, Callable[[Action], None]]:
        """What each kind of action does."""
        return {
            "F": self._forward,
            "B": self._backward,
            "I": self._input_backward,
            "W": self._weight_backward,
        }

    def begin(self, sizes: Sequence[int], ahead: Collection[Action] | None = None) -> None:
        """A step of micro-batches of so many samples begins: those of its batch and, where forward
        passes of the following one are to run, of that. Where `ahead` is given these actions alone
        may run, of all ranks, until `go_on` or `discard`.
        """
        n = self._messages.num_microbatches
        self._kept = {(stage, m - n): kept for (stage, m), kept in self._kept.items()}
        self._sizes = [*sizes, *[0] * (2 * n - len(sizes))]
        self._timed = []
        self._messages.begin(self._sizes, ahead, self._kept)

    def arrives(self, action: Action, unless: Callable[[], bool]) -> bool:
        """Wait for all that `action` uses; false as soon as `unless` is true before."""
        with self._phases("wait"):
            return self._messages.arrives(action, unless)

    def go_on(self) -> None:
        """All actions may run."""
        self._messages.expect_all()

    def discard(self, remaining: Sequence[Action], ahead: Collection[Action]) -> None:
        """The step as if it had not begun. `remaining`: those of `ahead` that this rank has not
        run. All ranks of the pipeline call this, and `begin` the step again.
        """
        with self._phases("wait"):
            self._messages.discard(remaining, ahead)
        self._kept.clear()

    def end(self) -> None:
        """All actions of the step have run."""
        with self._phases("wait"):
            self._messages.end()
        missing = [place for place in self._kept if place[1] < self._messages.num_microbatches]
        assert not missing, f"no backward pass of {missing}"
        self.timed_actions = self._timed

    def empty_pipe(self) -> None:
        """Forget what has run of the following batch, whose step will run it. Collective over the
        pipeline.
        """
        self._kept.clear()
        self._messages.drop()

    def _forward(self, action: Action) -> None:
        stage, m = self._stages[action.stage], action.microbatch
        if not self._sizes[m] or (stage.number, m) in self._kept:
            return
        with self._phases("wait"):
            received = [(edge, self._messages.take(edge, m)) for edge in stage.takes]
        self._start = time.perf_counter()
        for _, tensor in received:
            tensor.requires_grad_(tensor.is_floating_point())
        kept = _Kept(received)
        with torch.set_grad_enabled(not self._recompute):
            self._run(stage, m, kept, count=True)
        for edge, tensor in kept.outputs:
            self._messages.give(edge, m, tensor)
        if self._recompute:
            kept.outputs, kept.loss = [], None
        self._kept[stage.number, m] = kept
        self.peak_kept = max(self.peak_kept, len(self._kept))
        self._took(action)

    def _run(self, stage: Stage, m: int, kept: _Kept, count: bool) -> None:
        """The stage's blocks on what it has received; outputs, or the loss, into `kept`."""
        batch = None
        if stage.reads_inputs or stage.is_last:
            with self._phases("data"):
                batch = self._batches.load(m)
        with self._phases("forward"):
            self._batches.enter(m)
            values = {edge.value: self._enter(tensor) for edge, tensor in kept.received}
            if batch is not None:
                values[INPUTS] = batch.inputs
            with bf16_products(self._autocast):
                self._runs[stage.number](values)
            kept.outputs = [(edge, values[edge.value]) for edge in stage.gives]
            if stage.is_last:
                assert batch is not None
                outputs = in_full(values[stage.output])
                kept.loss = self._batches.loss(outputs, batch, count)

    def _enter(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._recompute:
            return tensor.clone()  # blocks may overwrite it, and it is needed again
        entered: torch.Tensor = Enter.apply(tensor)  # type: ignore[no-untyped-call]
        return entered

    def _backward(self, action: Action) -> None:
        kept = self._ready(action)
        if kept is None:
            return
        outputs, gradients = self._gradients(action, kept)
        if action == self._last:
            self._final()
        with self._phases("backward"):
            torch.autograd.backward(outputs, gradients)
        del self._kept[action.stage, action.microbatch]
        self._return(action, kept)
        self._took(action)

    def _input_backward(self, action: Action) -> None:
        kept = self._ready(action)
        if kept is None:
            return
        outputs, gradients = self._gradients(action, kept)
        leaves = [tensor for _, tensor in kept.received if tensor.requires_grad]
        kept.split = SplitBackward(outputs, gradients, leaves)
        kept.outputs, kept.loss = [], None
        with self._phases("backward"):
            kept.split.input_part()
        self._return(action, kept)
        kept.received = []
        self._took(action)

    def _weight_backward(self, action: Action) -> None:
        kept = self._kept.pop((action.stage, action.microbatch), None)
        if kept is None:
            return
        assert kept.split is not None
        self._start = time.perf_counter()
        if action == self._last:
            self._final()
        with self._phases("backward"):
            kept.split.weight_part()
        self._took(action)

    def _ready(self, action: Action) -> _Kept | None:
        """What the forward pass kept; None for a micro-batch without samples."""
        return self._kept.get((action.stage, action.microbatch))

    def _gradients(
        self, action: Action, kept: _Kept
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Tensors to go back from, and their gradients: of the loss, or what later stages send."""
        stage, m = self._stages[action.stage], action.microbatch
        with self._phases("wait"):
            arrived = [self._messages.take(edge, m, backward=True) for edge in stage.gives]
        self._start = time.perf_counter()
        if self._recompute:
            self._run(stage, m, kept, count=False)
        if kept.loss is not None:
            return [kept.loss], [None]
        outputs: dict[str, torch.Tensor] = {}
        sums: dict[str, torch.Tensor] = {}
        for (edge, output), gradient in zip(kept.outputs, arrived, strict=True):
            if output.requires_grad:
                gradient = gradient.to(output.dtype)
                same = sums.get(edge.value)
                outputs[edge.value] = output
                sums[edge.value] = gradient if same is None else same + gradient
        return list(outputs.values()), list(sums.values())

    def _return(self, action: Action, kept: _Kept) -> None:
        """The gradients of what the stage received, to where it came from."""
        for edge, tensor in kept.received:
            gradient = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            self._messages.give(edge, action.microbatch, gradient, backward=True)

    def _took(self, action: Action) -> None:
        self._timed.append(TimedAction(action, self._start, time.perf_counter()))
