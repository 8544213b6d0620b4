"""What one stage of a model computes, keeps and sends."""

from dataclasses import dataclass
from functools import cached_property

from dist_ml.plan.model_work import BlockWork
from dist_ml.plan.planned_ranks import Collective


@dataclass(frozen=True, eq=False)
class StageWork:
    """One stage, for one micro-batch; `num_parameters`: each once, however many blocks use it."""

    blocks: tuple[BlockWork, ...]
    num_parameters: int

    @cached_property
    def kept_bytes(self) -> int:
        return sum(block.kept_bytes for block in self.blocks)

    @cached_property
    def largest_bytes(self) -> int:
        """What one operator takes and makes, at most."""
        return max(block.largest_bytes for block in self.blocks)

    @property
    def sent(self) -> list[Collective]:
        """Forward and backward, to the ranks that share its layers."""
        return [one for block in self.blocks for one in (*block.forward.sent, *block.backward.sent)]
