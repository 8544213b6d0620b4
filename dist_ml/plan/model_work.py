"""What a model's blocks compute and keep for one micro-batch."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.func import functional_call

from dist_ml.models import BlockModel, Objective
from dist_ml.models.blocks import INPUTS, Block, bf16_products
from dist_ml.plan.block_key import block_key
from dist_ml.plan.operators import Operator, recorded, without_data
from dist_ml.plan.planned_ranks import Collective


class Pass(NamedTuple):
    """One way through a block: what is computed, and sent to the ranks that share its layers."""

    operators: tuple[Operator, ...]
    sent: tuple[Collective, ...]

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)


class BlockWork(NamedTuple):
    """Of one block and micro-batch, on one rank."""

    name: str
    forward: Pass
    backward: Pass
    kept_bytes: int  # from its forward to its backward pass, parameters not counted
    num_parameters: int
    output_bytes: int

    @property
    def flops(self) -> int:
        return self.forward.flops + self.backward.flops

    @property
    def largest_bytes(self) -> int:
        """What one operator takes and makes, at most."""
        operators = (*self.forward.operators, *self.backward.operators)
        return max((operator.num_bytes for operator in operators), default=0)


class _Recording:
    """Passes of blocks one after another, of which each takes what was `sent` since the last."""

    def __init__(self, sent: list[Collective]) -> None:
        self._sent = sent

    def taken(self, operators: Sequence[Operator]) -> Pass:
        sent = tuple(self._sent)
        self._sent.clear()
        return Pass(tuple(operators), sent)


def block_works(
    model: BlockModel,
    inputs: torch.Tensor,
    num_samples: int,
    autocast: bool,
    sent: list[Collective] | None = None,
    keys: Sequence[Hashable] | None = None,
) -> tuple[list[BlockWork], torch.Tensor]:
    """Of every block of a model on the meta device, and the outputs, without data. Layers are
    whole, or one planned rank's parts, whose collectives go to `sent`; dropout is on. `inputs`
    [1, ...]: a sample. Blocks of the same `keys` (default: `block_key` of each) are recorded once.
    No arithmetic; a few milliseconds a block that is recorded.
    """
    keys = block_keys(model) if keys is None else keys
    model.context.set(0, np.arange(num_samples))
    model.context.draws = False
    recording, works = _Recording([] if sent is None else sent), []
    known: dict[Hashable, tuple[BlockWork, torch.Tensor]] = {}
    with without_data():
        values = {INPUTS: torch.empty(num_samples, *inputs.shape[1:], dtype=inputs.dtype)}
        for block, key in zip(model.blocks(), keys, strict=True):
            taken = [values[source] for source in block.sources]
            key = key, *((tuple(x.shape), x.dtype, x.requires_grad) for x in taken)
            if key not in known:
                known[key] = _block_work(block, taken, autocast, recording)
            work, values[block.name] = known[key]
            works.append(work._replace(name=block.name))
    model.context.clear()
    model.context.draws = True
    return works, values[model.blocks()[-1].name]


def block_keys(model: BlockModel) -> list[Hashable]:
    """Equal for blocks that do the same work; of a model that has not run."""
    return [block_key(block.module) for block in model.blocks()]


def _block_work(
    block: Block, taken: Sequence[torch.Tensor], autocast: bool, recording: _Recording
) -> tuple[BlockWork, torch.Tensor]:
    inputs = [value.detach().clone().requires_grad_(value.requires_grad) for value in taken]
    parameters = {
        name: torch.empty(parameter.shape, dtype=parameter.dtype, requires_grad=True)
        for name, parameter in block.module.named_parameters()
    }
    # Blocks may overwrite what they take, which leaves of autograd's graph forbid.
    copies = [value.clone() for value in inputs]
    with recorded(list(parameters.values())) as there, bf16_products(autocast):
        outputs = functional_call(block.module, parameters, tuple(copies))
    forward = recording.taken(there.operators)
    with recorded([]) as back:
        if outputs.requires_grad:
            outputs.backward(torch.empty_like(outputs))
    backward = recording.taken(back.operators)
    held = sum(parameter.numel() for parameter in parameters.values())
    num_bytes = outputs.numel() * outputs.element_size()
    work = BlockWork(block.name, forward, backward, there.kept_bytes, held, num_bytes)
    return work, outputs.detach().requires_grad_(outputs.is_floating_point())


def objective_work(
    objective: Objective,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    num_samples: int,
    sent: list[Collective] | None = None,
) -> BlockWork:
    """Of the loss of `outputs` without data; `targets` [1, ...] of one sample."""
    recording = _Recording([] if sent is None else sent)
    with without_data():
        given = outputs.detach().requires_grad_()
        wanted = torch.empty(num_samples, *targets.shape[1:], dtype=targets.dtype)
        with recorded([given]) as there:
            loss = objective.sums(given, wanted)[0]
        forward = recording.taken(there.operators)
        with recorded([]) as back:
            loss.backward()  # type: ignore[no-untyped-call]
        backward = recording.taken(back.operators)
    return BlockWork("objective", forward, backward, there.kept_bytes, 0, 0)
