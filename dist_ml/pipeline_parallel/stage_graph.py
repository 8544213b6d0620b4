"""A model cut into stages: what each stage runs, takes from others, and gives to others.

A value that a block makes goes to every later stage with a block that takes it, neighbour or not,
and its gradient the same way back. So a skip connection is an edge like any other:

    blocks   a -> b -> c -> d, and d takes a too       cut   [a] [b c] [d]
    edges    a: 0 -> 1     c: 1 -> 2     a: 0 -> 2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dist_ml.errors import ConfigError
from dist_ml.models.blocks import INPUTS, Block, BlockModel, BlockRun
from dist_ml.partition import Range


class Edge(NamedTuple):
    """The output of the block `value`, made on stage `source` and used on stage `destination`."""

    number: int
    value: str
    source: int
    destination: int


@dataclass(frozen=True)
class Stage:
    """One range of blocks; `takes` and `gives` in the order of their numbers."""

    number: int
    blocks: tuple[Block, ...]
    takes: tuple[Edge, ...]
    gives: tuple[Edge, ...]
    reads_inputs: bool  # some block takes what the model is given
    is_last: bool

    def runner(self) -> BlockRun:
        """Runs its blocks, and keeps what it gives."""
        return BlockRun(self.blocks, [edge.value for edge in self.gives])

    @property
    def output(self) -> str:
        """The name of the last block's output."""
        return self.blocks[-1].name

    def parameters(self) -> list[torch.nn.Parameter]:
        """Each once, in the order of blocks."""
        found = {
            id(parameter): parameter
            for block in self.blocks
            for parameter in block.module.parameters()
        }
        return list(found.values())


def cut_into_stages(model: BlockModel, cuts: Sequence[Range]) -> tuple[Stage, ...]:
    """The model's stages, where `cuts` are ranges of its blocks, in order. O(blocks + edges)."""
    blocks = tuple(model.blocks())
    stage_of = {
        block.name: number for number, part in enumerate(cuts) for block in blocks[part.slice]
    }
    edges: dict[tuple[str, int], Edge] = {}
    for block in blocks:
        for source in block.sources:
            destination = stage_of[block.name]
            if source == INPUTS or stage_of[source] == destination:
                continue
            key = source, destination
            edges.setdefault(key, Edge(len(edges), source, stage_of[source], destination))
    return tuple(
        Stage(
            number,
            blocks[part.slice],
            tuple(edge for edge in edges.values() if edge.destination == number),
            tuple(edge for edge in edges.values() if edge.source == number),
            any(INPUTS in block.sources for block in blocks[part.slice]),
            number == len(cuts) - 1,
        )
        for number, part in enumerate(cuts)
    )


class Shape(NamedTuple):
    """What one sample's part of a block's output is: dimension 0 of the output is the samples."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


def output_shapes(model: BlockModel, sample: torch.Tensor) -> dict[str, Shape]:
    """The shape of every block's output, of a model on the meta device; `sample` [b, ...] is a
    batch of its inputs. No arithmetic, no communication: every rank finds the same.

    `ConfigError` for a block whose output doesn't begin with the samples, or that can't say its
    shape without values.
    """
    model.context.clear()
    model.eval()  # what is normalised over samples needs several only in training
    values = {INPUTS: sample.to("meta")}
    blocks = model.blocks()
    try:
        with torch.no_grad():
            BlockRun(blocks, [block.name for block in blocks])(values)
    except (RuntimeError, TypeError, AttributeError) as error:
        done = sum(block.name in values for block in blocks)
        raise ConfigError(
            f"block {blocks[done].name} can't be run on tensors without values (device 'meta'), "
            f"by which a pipeline learns shapes: {str(error).splitlines()[0]}"
        ) from error
    finally:
        model.train()
    shapes = {}
    for block in blocks:
        value = values[block.name]
        if value.ndim < 1 or len(value) != len(sample):
            raise ConfigError(
                f"block {block.name} makes a tensor of shape {list(value.shape)} of "
                f"{len(sample)} samples; in a pipeline the first dimension must be the samples"
            )
        shapes[block.name] = Shape(tuple(value.shape[1:]), value.dtype)
    return shapes


class Place(NamedTuple):
    """One use of a parameter."""

    stage: int
    name: str  # as the state dict has it
    module: torch.nn.Module
    attribute: str

    @property
    def parameter(self) -> torch.nn.Parameter:
        """As it is now: `materialize` puts others in the place of those on the meta device."""
        found: torch.nn.Parameter = getattr(self.module, self.attribute)
        return found


def shared_parameters(model: BlockModel, stages: Sequence[Stage]) -> list[tuple[Place, ...]]:
    """The uses of each parameter that several stages use; of a model on the meta device, where a
    parameter that is used twice is one object.
    """
    uses: dict[torch.nn.Parameter, list[Place]] = {}
    names = {module: name for name, module in model.named_modules()}
    for stage in stages:
        for block in stage.blocks:
            for module in block.module.modules():
                for attribute, parameter in module.named_parameters(recurse=False):
                    prefix = names.get(module, block.name)
                    place = Place(stage.number, f"{prefix}.{attribute}", module, attribute)
                    uses.setdefault(parameter, []).append(place)
    return [tuple(places) for places in uses.values() if len({place.stage for place in places}) > 1]
