"""Activations and their gradients between the stages of a pipeline.

Every message of a step has a tag of its own, (direction, edge, micro-batch), so the order in which
messages are sent and expected can't cross; those of the same tag in later steps follow in MPI's
own order. Receives are posted before they are waited for; sends end on their own, and are waited
for when the pipe is empty.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.peer_monitor import PeerMonitor
from dist_ml.comm.request import Request
from dist_ml.errors import ScheduleError
from dist_ml.pipeline_parallel.message_keys import Key, expected, forward_at, sent_ahead, used_by
from dist_ml.pipeline_parallel.schedule import Action, Schedule
from dist_ml.pipeline_parallel.stage_graph import Edge, Shape, Stage

_POSTED_AHEAD = 4  # receives, so that a sender with much to send needn't wait for this rank


class StageMessages:
    """Brings tensors from the stage that makes them to the stages that use them.

    begin(sizes)              the samples of each micro-batch; those of none send nothing
    give(edge, m, tensor)     returns at once; the tensor must not change any more
    take(edge, m)             waits; the caller owns the tensor
    end()                     everything due was taken; where the pipe is empty, everything sent has
                              arrived, or is in MPI's hands
    drop()                    takes what was sent to forward passes of a following batch that won't
                              run

    A step that may be taken back (`post_validation.py`) posts receives for what its first actions
    use only, until `expect_all`; or `discard` receives what was sent so far, and the step begins
    again. A rank that may stop anywhere between these actions lets others wait by `arrives` alone.

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
        self.num_microbatches = schedule.num_microbatches
        self._expected = expected(schedule, stages, comm.rank)
        self._sent_ahead = sent_ahead(schedule, stages, comm.rank)
        self._check_tags(sum(len(stage.gives) for stage in stages))
        self._sizes: Sequence[int] = ()
        self._next = 0  # of the expected messages, the first whose receive isn't posted
        self._stop = 0  # of these, the first whose receive may not be posted yet
        self._due: list[Key] = []
        self._posted: dict[Key, tuple[torch.Tensor, Request]] = {}
        self._local: dict[Key, torch.Tensor] = {}
        self._sent: deque[Request] = deque()

    def begin(
        self,
        sizes: Sequence[int],
        ahead: Collection[Action | None] | None = None,
        done: Collection[tuple[int, int]] = (),
    ) -> None:
        """`ahead`: all actions that may run yet. `done`: (stage, micro-batch) that ran before."""
        self._sizes = sizes
        self._due = [
            key
            for key in self._expected
            if sizes[key.microbatch]
            and (key.backward or (key.edge.destination, key.microbatch) not in done)
        ]
        self._next, self._stop = 0, len(self._due)
        if ahead is not None:
            self._stop = sum(forward_at(key.edge.destination, key) in ahead for key in self._due)
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
                forward_at(s, key) in ahead for s in (key.edge.source, key.edge.destination)
            )
            if made and not used:
                self.take(key.edge, key.microbatch)
        self._local.clear()
        self.end()

    def arrives(self, action: Action, unless: Callable[[], bool]) -> bool:
        """Wait for all that `action` uses; false as soon as `unless` is true before."""
        keys = [key for key in used_by(action, self._stages) if self._sizes[key.microbatch]]
        missing = {key for key in keys if key not in self._local}
        while not missing <= self._posted.keys():
            self._post_next()
        monitor = PeerMonitor(self._comm.transport.peers)
        while not unless():
            missing = {key for key in missing if not self._posted[key][1].test()}
            if not missing:
                return True
            monitor.between_looks()
        return False

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
        if not any(self._sizes[self.num_microbatches :]):
            self._wait_for_sends()
        assert not self._posted, f"never taken: {[*self._posted]}"
        assert not self._local, f"never taken: {[*self._local]}"

    def drop(self) -> None:
        for key in self._sent_ahead:
            if self._sizes[key.microbatch]:
                self.take(key.edge, key.microbatch)
        self._wait_for_sends()

    def _wait_for_sends(self) -> None:
        while self._sent:
            self._sent.popleft().wait()

    def _post(self) -> None:
        while self._next < self._stop and len(self._posted) < _POSTED_AHEAD:
            self._post_next()

    def _post_next(self) -> None:
        self._receive(self._due[self._next])
        self._next += 1

    def _receive(self, key: Key) -> None:
        tensor = self._empty(key.edge, self._sizes[key.microbatch])
        source = self._rank(key, receiver=False)
        self._posted[key] = tensor, self._comm.ireceive(tensor, source, self._tag(key))

    def _empty(self, edge: Edge, size: int) -> torch.Tensor:
        return torch.empty((size, *self._shapes[edge.value].sizes), dtype=self._dtype_of(edge))

    def _rank(self, key: Key, receiver: bool) -> int:
        pipe, edge = self._schedule.pipe(key.microbatch), key.edge
        return pipe[edge.destination if receiver != key.backward else edge.source]

    def _tag(self, key: Key) -> int:
        n = self.num_microbatches  # N + m of one step is m of the next
        return (2 * key.edge.number + key.backward) * n + key.microbatch % n

    def _check_tags(self, num_edges: int) -> None:
        largest = 2 * num_edges * self.num_microbatches - 1
        allowed = self._comm.transport.largest_tag
        if largest > allowed:
            raise ScheduleError(
                f"{num_edges} edges between stages and {self.num_microbatches} micro-batches need "
                f"message tags up to {largest}, but this MPI has {allowed}; use fewer micro-batches"
            )

    def _dtype_of(self, edge: Edge) -> torch.dtype:
        """Floating values travel as the model's own type, which holds what autocast rounds."""
        dtype = self._shapes[edge.value].dtype
        return self._dtype if dtype.is_floating_point else dtype
