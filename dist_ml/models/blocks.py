"""What every model is: a list of named blocks, each a function of the model's inputs or of what
blocks before it made.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from dist_ml.models.spread import WHOLE, Spread
from dist_ml.models.step_context import StepContext
from dist_ml.placement import whole_shape

INPUTS = "inputs"  # the name of what the model is given


class Block(NamedTuple):
    """A part of a model that is not cut further.

    `sources` name the blocks whose outputs the module takes, in the order of its arguments;
    `INPUTS` is the model's own input. What several blocks take none of them may overwrite.
    """

    name: str
    module: nn.Module
    sources: tuple[str, ...]


def chain(named: Sequence[tuple[str, nn.Module]]) -> tuple[Block, ...]:
    """Blocks that each take the output of the one before, the first one the model's inputs."""
    names = [INPUTS, *(name for name, _ in named)]
    return tuple(
        Block(name, module, (before,)) for before, (name, module) in zip(names, named, strict=False)
    )


class BlockRun:
    """Runs blocks in order, each on the values of its sources; what no later one takes, and `keep`
    doesn't name, is let go.
    """

    def __init__(self, blocks: Sequence[Block], keep: Collection[str] = ()) -> None:
        self.output = blocks[-1].name
        users = {source: block.name for block in blocks for source in block.sources}  # the last
        self._steps = [
            (name, module, sources, [s for s in sources if users[s] == name and s not in keep])
            for name, module, sources in blocks
        ]

    def __call__(self, values: dict[str, torch.Tensor]) -> None:
        """`values` hold what the blocks take from outside; their outputs join them."""
        for name, module, sources, unused in self._steps:
            values[name] = module(*[values[source] for source in sources])
            for source in unused:
                values.pop(source, None)


class BlockModel(nn.Module, ABC):
    """A model that runs block after block, so that a range of blocks is a pipeline stage.

    State-dict names are plain: they name layers, not blocks or kernels. `context` tells the layers
    which samples pass through them; `output_spread` is how its outputs lie on the ranks that share
    its layers; `rows_per_sample` is how many rows of most layers' products a sample makes. Made
    under `torch.device("meta")` a model has no weights; `materialize` makes those of some blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.context = StepContext()
        self.output_spread: Spread = WHOLE
        self.rows_per_sample = 1
        self._run: BlockRun | None = None
        self._made: dict[nn.Parameter, nn.Parameter] = {}  # of parameters on the meta device

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The blocks in order, the last one's output being the model's; each holds the layers whose
        parameters it uses: what replaces a layer in the model alone changes nothing.
        """

    @abstractmethod
    def initialise(self, block: Block) -> None:
        """Fill the block's parameters with their first values, whatever they hold; the same on any
        rank and in any order of blocks.
        """

    def materialize(self, blocks: Collection[Block] | None = None) -> None:
        """Memory and first values for the parameters of `blocks` (default: all) that have none. A
        parameter that several blocks use stays one.
        """
        for block in self.blocks() if blocks is None else blocks:
            for module in block.module.modules():
                self._allocate(module)
            self.initialise(block)

    @property
    def num_parameters(self) -> int:
        """Elements of the whole model's parameters, whichever ranks have them; one that several
        blocks use counts once.
        """
        distinct = {self._made.get(parameter, parameter) for parameter in self.parameters()}
        return sum(math.prod(whole_shape(parameter)) for parameter in distinct)

    def held_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that this rank has and that are trained, in order, each by the first of
        its names in the whole model: the same name on every rank that has it.
        """
        names: dict[nn.Parameter, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(self._made.get(parameter, parameter), name)
        return {names[p]: p for p in self.parameters() if p.requires_grad and not p.is_meta}

    def held_frozen(self) -> dict[str, torch.Tensor]:
        """The parameters that this rank has and that stay as they are."""
        named = self.named_parameters()
        return {name: p for name, p in named if not p.requires_grad and not p.is_meta}

    def held_buffers(self) -> dict[str, torch.Tensor]:
        """What blocks of this rank keep beside parameters, and a state dict has (running
        statistics).
        """
        saved = self.state_dict().keys()
        named = self.named_buffers()
        return {name: buffer for name, buffer in named if name in saved and not buffer.is_meta}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the last block for the inputs of the first."""
        if self._run is None:
            self._run = BlockRun(self.blocks())
        values = {INPUTS: inputs}
        self._run(values)
        return values[self._run.output]

    def _allocate(self, module: nn.Module) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            made = self._made.get(parameter)
            if made is None:
                made = nn.Parameter(torch.empty_like(parameter, device="cpu"))
                made.__dict__.update(parameter.__dict__)  # a gradient sink, for example
                self._made[parameter] = made
            setattr(module, name, made)


def forward(model: nn.Module, inputs: torch.Tensor, autocast: bool = False) -> torch.Tensor:
    """The model's outputs in the dtype of its parameters, however the products were computed.

    `autocast`: products in bfloat16, parameters and gradients in their own dtype.
    """
    with bf16_products(autocast):
        outputs: torch.Tensor = model(inputs)
    return in_full(outputs)


def in_full(outputs: torch.Tensor) -> torch.Tensor:
    """What products in bfloat16 made, in the dtype of the parameters beside them: float32."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def bf16_products(enabled: bool) -> AbstractContextManager[object]:
    """Autocast where `enabled`; else nothing, since entering it disabled takes 10 µs, too."""
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()
