"""Activations and their gradients between the stages of a pipeline.

Every message of a step has a tag of its own, (direction, edge, micro-batch), so the order in which
messages are sent and expected can't cross. Receives are posted before they are waited for; sends
end on their own, and are waited for at the end of the step.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.request import Request
from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.stage_graph import Edge, Shape, Stage

_POSTED_AHEAD = 4  # receives, so that a sender with much to send needn't wait for this rank


class Key(NamedTuple):
    """One tensor on its way: along an edge (backward: against it), of one micro-batch."""

    edge: Edge
    backward: bool
    microbatch: int


class StageMessages:
    """Brings tensors from the stage that makes them to the stages that use them.

    begin(sizes)              the samples of each micro-batch; those of none send nothing
    give(edge, m, tensor)     returns at once; the tensor must not change any more
    take(edge, m)             waits; the caller owns the tensor
    end()                     everything sent has arrived, or is in MPI's hands

    A step that may be taken back (`post_validation.py`) posts receives for what its first actions
    use only, until `expect_all`; or `discard` receives what was sent so far, and the step begins
    again.

    `backward=True`: a gradient, against the edge's direction. `comm` is the pipeline axis; ranks
    are those of the schedule. Words: sizes of what edges between two ranks carry, sent once each
    way.
    """

    def __init__(
        self,
        comm: Communicator,
        schedule: Schedule,
        stages: Sequence[Stage],
        shapes: Mapping[str, Shape],
        dtype: torch.dtype,
    ) -> None:
        self._comm, self._schedule, self._shapes, self._dtype = comm, schedule, shapes, dtype
        self._stages = stages
        self._num_microbatches = schedule.num_microbatches
        self._expected = _expected(schedule, stages, comm.rank)
        self._check_tags(sum(len(stage.gives) for stage in stages))
        self._sizes: Sequence[int] = ()
        self._next = 0  # of the expected messages, the first whose receive isn't posted
        self._stop = 0  # of these, the first whose receive may not be posted yet
        self._due: list[Key] = []
        self._posted: dict[Key, tuple[torch.Tensor, Request]] = {}
        self._local: dict[Key, torch.Tensor] = {}
        self._sent: deque[Request] = deque()

    def begin(self, sizes: Sequence[int], ahead: Collection[Action | None] | None = None) -> None:
        """`ahead`: the only actions that may run for now, of all ranks."""
        self._sizes = sizes
        self._due = [key for key in self._expected if sizes[key.microbatch]]
        self._next, self._stop = 0, len(self._due)
        if ahead is not None:
            self._stop = sum(_forward(key, key.edge.destination) in ahead for key in self._due)
        self._post()

    def expect_all(self) -> None:
        """All actions may run."""
        self._stop = len(self._due)
        self._post()

    def discard(self, remaining: Sequence[Action], ahead: Collection[Action | None]) -> None:
        """Nobody will use what the forward passes `ahead` have sent: receive all of it, and send
        zeros for those of this rank that did not run, `remaining`. Collective.
        """
        for action in remaining:
            if size := self._sizes[action.microbatch]:
                for edge in self._stages[action.stage].takes:
                    self.take(edge, action.microbatch)
                for edge in self._stages[action.stage].gives:
                    self.give(edge, action.microbatch, self._empty(edge, size).zero_())
        for key in self._due:
            made, used = (
                _forward(key, s) in ahead for s in (key.edge.source, key.edge.destination)
            )
            if made and not used:
                self.take(key.edge, key.microbatch)
        self._local.clear()
        self.end()

    def give(self, edge: Edge, m: int, tensor: torch.Tensor, backward: bool = False) -> None:
        key = Key(edge, backward, m)
        to = self._rank(key, receiver=True)
        tensor = tensor.detach().to(self._dtype_of(edge)).contiguous()
        if to == self._comm.rank:
            self._local[key] = tensor.clone()  # its user may overwrite it, its maker keeps it
            return
        while self._sent and self._sent[0].test():
            self._sent.popleft()
        self._sent.append(self._comm.isend(tensor, to, self._tag(key)))

    def take(self, edge: Edge, m: int, backward: bool = False) -> torch.Tensor:
        key = Key(edge, backward, m)
        if key in self._local:
            return self._local.pop(key)
        if key not in self._posted:
            self._receive(key)
        tensor, request = self._posted.pop(key)
        request.wait()
        self._post()
        return tensor

    def end(self) -> None:
        while self._sent:
            self._sent.popleft().wait()
        assert not self._posted, f"never taken: {[*self._posted]}"
        assert not self._local, f"never taken: {[*self._local]}"

    def _post(self) -> None:
        while self._next < self._stop and len(self._posted) < _POSTED_AHEAD:
            self._receive(self._due[self._next])
            self._next += 1

    def _receive(self, key: Key) -> None:
        tensor = self._empty(key.edge, self._sizes[key.microbatch])
        source = self._rank(key, receiver=False)
        self._posted[key] = tensor, self._comm.ireceive(tensor, source, self._tag(key))

    def _empty(self, edge: Edge, size: int) -> torch.Tensor:
        return torch.empty((size, *self._shapes[edge.value].sizes), dtype=self._dtype_of(edge))

    def _rank(self, key: Key, receiver: bool) -> int:
        pipe = self._schedule.pipes[self._schedule.pipe_of[key.microbatch]]
        edge = key.edge
        return pipe[edge.destination if receiver != key.backward else edge.source]

    def _tag(self, key: Key) -> int:
        return (2 * key.edge.number + key.backward) * self._num_microbatches + key.microbatch

    def _check_tags(self, num_edges: int) -> None:
        largest = 2 * num_edges * self._num_microbatches - 1
        allowed = self._comm.transport.largest_tag
        if largest > allowed:
            raise ScheduleError(
                f"{num_edges} edges between stages and {self._num_microbatches} micro-batches need "
                f"message tags up to {largest}, but this MPI has {allowed}; use fewer micro-batches"
            )

    def _dtype_of(self, edge: Edge) -> torch.dtype:
        """Floating values travel as the model's own type, which holds what autocast rounds."""
        dtype = self._shapes[edge.value].dtype
        return self._dtype if dtype.is_floating_point else dtype


def _expected(schedule: Schedule, stages: Sequence[Stage], rank: int) -> list[Key]:
    """What `rank` receives from others in a step, in the order in which it is used."""
    keys: list[Key] = []
    for action in schedule.actions[rank]:
        keys += [key for key in used_by(action, stages) if _comes_from(schedule, key) != rank]
    return keys


def _forward(key: Key, stage: int) -> Action | None:
    """The forward pass that makes or uses an activation at `stage`; None for a gradient."""
    return None if key.backward else Action(stage, "F", key.microbatch)


def used_by(action: Action, stages: Sequence[Stage]) -> list[Key]:
    """The tensors of other stages that an action uses."""
    stage = stages[action.stage]
    if action.kind == "F":
        return [Key(edge, False, action.microbatch) for edge in stage.takes]
    if action.kind in ("B", "I"):
        return [Key(edge, True, action.microbatch) for edge in stage.gives]
    return []


def _comes_from(schedule: Schedule, key: Key) -> int:
    pipe = schedule.pipes[schedule.pipe_of[key.microbatch]]
    return pipe[key.edge.destination if key.backward else key.edge.source]
