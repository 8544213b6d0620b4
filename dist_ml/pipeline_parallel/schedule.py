"""A pipeline schedule as a value: what every rank computes, in which order.

    2F0     stage 2 runs micro-batch 0 forward
    2B0     its whole backward pass
    2I0     the part that gives the gradient of the stage's input
    2W0     the part that gives the gradients of its weights

Communication isn't written down: it follows from which rank computes what.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

from dist_ml.errors import ScheduleError

Kind: TypeAlias = Literal["F", "B", "I", "W"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TEXT = re.compile(r"(\d+)([FBIW])(\d+)")


class Action(NamedTuple):
    """One micro-batch through one stage."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that `str` wrote; `ScheduleError` for anything else."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ScheduleError(
                f"{text!r} is no action: write stage, one of {', '.join(KINDS)}, and micro-batch, "
                "like 2F0"
            )
        return cls(int(match[1]), cast(Kind, match[2]), int(match[3]))


@dataclass(frozen=True)
class Schedule:
    """One step: `actions[r]` is the order of rank r.

    A *pipe* is a way through all stages: `pipes[p][s]` is the rank that holds its stage s, and
    micro-batch m takes pipe `pipe_of[m]`. One pipe is the rule; Chimera has several, and then a
    stage has a copy of its weights on each rank that holds it.

    Where `weight_versions` is 2 the schedule is asynchronous: a step's actions run into the next,
    whose micro-batch m is number N + m.
    """

    name: str
    actions: tuple[tuple[Action, ...], ...]
    pipes: tuple[tuple[int, ...], ...]
    pipe_of: tuple[int, ...]
    weight_versions: int = 1

    @property
    def num_ranks(self) -> int:
        return len(self.actions)

    @property
    def num_stages(self) -> int:
        return len(self.pipes[0])

    @property
    def num_microbatches(self) -> int:
        return len(self.pipe_of)

    @property
    def is_asynchronous(self) -> bool:
        return self.weight_versions > 1

    def pipe(self, microbatch: int) -> tuple[int, ...]:
        """The ranks that hold the stages which a micro-batch passes, in order."""
        return self.pipes[self.pipe_of[microbatch % self.num_microbatches]]

    def rank_of(self, action: Action) -> int:
        """The rank that runs `action`."""
        return self.pipe(action.microbatch)[action.stage]

    def holders(self, stage: int) -> tuple[int, ...]:
        """The ranks that hold weights of `stage`, in ascending order."""
        return tuple(sorted({pipe[stage] for pipe in self.pipes}))

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages whose weights `rank` holds, in ascending order."""
        return self._held[rank]

    @cached_property
    def _held(self) -> tuple[tuple[int, ...], ...]:
        held: list[set[int]] = [set() for _ in self.actions]
        for pipe in self.pipes:
            for stage, rank in enumerate(pipe):
                held[rank].add(stage)
        return tuple(tuple(sorted(stages)) for stages in held)

    @property
    def weight_copies(self) -> float:
        """How often all ranks together hold the model's weights."""
        held = sum(len(self.stages_of(rank)) for rank in range(self.num_ranks))
        return held / self.num_stages * self.weight_versions

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, actions)) for actions in self.actions)


def one_pipe(
    name: str,
    actions: Sequence[Sequence[Action]],
    ranks: Sequence[int],
    num_microbatches: int,
    weight_versions: int = 1,
) -> Schedule:
    """A schedule whose micro-batches all take the same way: stage s on `ranks[s]`."""
    orders = tuple(tuple(order) for order in actions)
    return Schedule(name, orders, (tuple(ranks),), (0,) * num_microbatches, weight_versions)


def one_stage(num_microbatches: int) -> Schedule:
    """The whole model on one rank: gradient accumulation over `num_microbatches`."""
    order = [Action(0, kind, m) for m in range(num_microbatches) for kind in ("F", "B")]
    return one_pipe("one_stage", [order], [0], num_microbatches)
