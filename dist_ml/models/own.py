"""Models that a user's program built, as blocks that the trainer runs.

What their layers draw from torch's generator (`nn.Dropout`) follows from (seed, step, block, first
sample), so that a run that goes on draws what it would have drawn, on a mesh of the same sizes.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dist_ml.counter_random import stream
from dist_ml.errors import ConfigError
from dist_ml.models.blocks import INPUTS, Block, BlockModel, chain

Named = Sequence[tuple[str, nn.Module]]


class OwnBlocks(BlockModel):
    """A chain of a user's modules, each a block: a range of them can be a pipeline's stage.

    State-dict names begin with those of the blocks. `ConfigError` for names that can't be used.
    """

    def __init__(self, named: Named, seed: int) -> None:
        super().__init__()
        if not named:
            raise ConfigError("model=[] has no blocks; give (name, module) for each")
        for name, module in named:
            self._add(name, module)
            _seed_draws(name, module, self, seed)
        self._blocks = chain(named)
        self._values: dict[torch.Tensor, torch.Tensor] = {}  # of tensors on the meta device

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        """Nothing: blocks come with their first values."""

    def let_go(self) -> None:
        """Put all tensors on the meta device; `materialize` gives those of some blocks back, with
        the values that they had, and lets the others go for good.
        """
        metas: dict[int, torch.Tensor] = {}  # what is used twice stays one
        for module in self.modules():
            for name, tensor in _own_tensors(module):
                if id(tensor) not in metas:
                    metas[id(tensor)] = self._meta(tensor)
                setattr(module, name, metas[id(tensor)])

    def materialize(self, blocks: Collection[Block] | None = None) -> None:
        super().materialize(blocks)
        self._values.clear()

    def _meta(self, tensor: torch.Tensor) -> torch.Tensor:
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        self._values[empty] = tensor
        return empty

    def _allocate(self, module: nn.Module) -> None:
        for name, meta in _own_tensors(module):
            if meta.is_meta:
                tensor = self._values[meta]
                setattr(module, name, tensor)
                if isinstance(meta, nn.Parameter) and isinstance(tensor, nn.Parameter):
                    self._made[meta] = tensor

    def _add(self, name: str, module: nn.Module) -> None:
        if name == INPUTS:
            raise ConfigError(f"a block can't be named {name!r}: that is what the model is given")
        if name in self._modules:
            raise ConfigError(f"two blocks are named {name!r}; give each a name of its own")
        try:
            self.add_module(name, module)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"({name!r}, {type(module).__name__}) is no block ({error.args[0]}); give "
                "(name, module), names without dots"
            ) from None


class OwnModule(BlockModel):
    """One module of a user's, as a single block, under its own state-dict names."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.module = module
        _seed_draws("module", module, self, seed)

    def blocks(self) -> tuple[Block, ...]:
        return chain([("module", self.module)])

    def initialise(self, block: Block) -> None:
        """Nothing: the module comes with its first values."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return self.module.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a module itself."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _seed_draws(name: str, module: nn.Module, model: BlockModel, seed: int) -> None:
    key = stream(f"draws of {name}", seed)

    def before_forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
        if model.context.trains and len(keys := model.context.sample_keys(key)):
            torch.default_generator.manual_seed(int(keys[0]))

    module.register_forward_pre_hook(before_forward)
