"""A pre-norm Transformer: a decoder that says which token comes next, or an encoder that says what
a sequence is.
"""

import torch
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.config.names import require_one_of
from dist_ml.counter_random import stream
from dist_ml.errors import ConfigError
from dist_ml.models.attention import SelfAttention
from dist_ml.models.blocks import Block, BlockModel, chain
from dist_ml.models.dropout import Dropout
from dist_ml.models.feedforward import FeedForward
from dist_ml.models.initialise import initialise_embedding, initialise_linear
from dist_ml.models.layers import LayerFactory, WholeLayers
from dist_ml.models.mlp import ACTIVATIONS
from dist_ml.models.rotary import Rotary
from dist_ml.models.samples import Samples
from dist_ml.models.size import require_parameters_fit
from dist_ml.models.spread import WHOLE, Spread
from dist_ml.models.tokens import Embed, Head, Tokens


class Transformer(BlockModel):
    """`config.depth` layers of attention and feed-forward on a residual stream [b, tokens, width].

    Of a text: int64 [b, tokens] -> [b, tokens, num_outputs], each from the tokens up to it. Of all
    else: [b, features] -> [b, num_outputs], from the mean over all tokens (`Tokens` says what these
    are). No softmax.

    Blocks: `embedding`, for each layer `layers.<i>.attention` and `layers.<i>.feedforward`, `head`.
    The state dict holds, under these, `norm`, `qkv` (rows [heads, 3, head_size]), `output`,
    `expand`, `contract`; and `embedding`, `positions` (learned), `norm`, `head` (not tied).
    """

    def __init__(
        self,
        config: ModelConfig,
        samples: Samples,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        layers: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        self._config, self._seed = config, seed
        self._make = layers or WholeLayers()
        self._tokens = Tokens.of(samples)
        self._causal = samples.task == "next_token"
        self._rotary = Rotary() if config.positions == "rotary" else None
        self._residual_spread = WHOLE
        self._num_dropouts = 0
        blocks: list[tuple[str, nn.Module]] = [("embedding", self._embed(samples.num_outputs))]
        self.layers = nn.ModuleList()
        for index in range(config.depth):
            name = f"layers.{index}"
            halves = {
                "attention": self._attention(f"{name}.attention"),
                "feedforward": self._feedforward(f"{name}.feedforward"),
            }
            self.layers.append(nn.ModuleDict(halves))
            blocks += [(f"{name}.{half}", module) for half, module in halves.items()]
        blocks.append(("head", self._end(samples.num_outputs)))
        self._blocks = chain(blocks)  # not registered: the layers' names are the state dict's
        self.to(dtype)
        self.rows_per_sample = self._tokens.num
        self._names = {module: name for name, module in self.named_modules()}
        if not self.norm.weight.is_meta:
            self.materialize()

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        """Linear layers keep the variance of their inputs, and those that add to the residual
        stream share it among them: 1 / sqrt(2 depth) each.
        """
        for module in block.module.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.detach().fill_(1)
                module.bias.detach().zero_()
            elif isinstance(module, nn.Linear | nn.Embedding):
                name = self._names[module]
                key = stream(f"initial weights {name}", self._seed)
                if isinstance(module, nn.Embedding):
                    initialise_embedding(module, key)
                else:
                    adds = name.endswith((".output", ".contract"))
                    gain = (2 * self._config.depth) ** -0.5 if adds else 1.0
                    initialise_linear(module, gain, key)

    def _embed(self, vocabulary: int) -> Embed:
        tokens, width = self._tokens, self._config.width
        self.embedding: nn.Module
        if tokens.num_features:
            self.embedding, spread = self._make.projection("embedding", tokens.num_features, width)
        else:
            self.embedding, spread = self._make.embedding("embedding", vocabulary, width)
        self._residual_spread = spread
        self.positions: nn.Embedding | None = None
        if self._rotary is None:
            self.positions = self._make.positions("positions", tokens.num, width, spread)
        return Embed(tokens, self.embedding, self.positions, self._dropout())

    def _attention(self, name: str) -> SelfAttention:
        make, width, spread = self._make, self._config.width, self._residual_spread
        size = width // self._config.heads
        norm = make.norm(f"{name}.norm", width, spread)
        qkv, spread = make.linear(f"{name}.qkv", width, 3 * width, spread, (1, 3 * size))
        output, spread = make.linear(f"{name}.output", width, width, spread, (size, 1))
        self._check_residual(name, spread)
        return SelfAttention(norm, qkv, output, self._dropout(), size, self._causal, self._rotary)

    def _feedforward(self, name: str) -> FeedForward:
        make, width, spread = self._make, self._config.width, self._residual_spread
        hidden = self._config.feedforward or 4 * width
        norm = make.norm(f"{name}.norm", width, spread)
        expand, spread = make.linear(f"{name}.expand", width, hidden, spread)
        contract, spread = make.linear(f"{name}.contract", hidden, width, spread)
        self._check_residual(name, spread)
        activation = ACTIVATIONS[self._config.activation]
        return FeedForward(norm, expand, contract, activation, self._dropout())

    def _end(self, num_outputs: int) -> Head:
        width, spread = self._config.width, self._residual_spread
        self.norm = self._make.norm("norm", width, spread)
        if self._config.tied:
            assert isinstance(self.embedding, nn.Embedding)
            head, self.output_spread = self._make.tied_linear("head", self.embedding, spread)
        else:
            head, self.output_spread = self._make.linear("head", width, num_outputs, spread)
            self.head = head  # a tied one has no parameters of its own
        return Head(self.norm, head, pooled=not self._causal)

    def _dropout(self) -> Dropout | None:
        """The next one, on the residual stream."""
        config = self._config
        if not config.dropout:
            return None
        self._num_dropouts += 1
        number = self._num_dropouts - 1
        return Dropout(
            config.dropout, self._seed, number, self.context, config.width, self._residual_spread
        )

    def _check_residual(self, name: str, spread: Spread) -> None:
        if spread != self._residual_spread:
            raise ConfigError(
                f"operator_parallel.layers has the outputs of {name} lie unlike the embedding's, "
                f"to which they are added; name one layout for both layers of {name} and the "
                "embedding, or none"
            )


def transformer(
    config: ModelConfig,
    samples: Samples,
    seed: int,
    dtype: torch.dtype,
    layers: LayerFactory,
) -> Transformer:
    """A decoder where the task is the next token, else an encoder. `ConfigError` for sizes that
    don't fit each other, and for more weights than can be held.
    """
    require_one_of("model.activation", config.activation, ACTIVATIONS)
    _check(config, samples)
    wanted = torch.get_default_device()
    with torch.device("meta"):
        model = Transformer(config, samples, seed, dtype, layers)
    if wanted.type != "meta":
        require_parameters_fit(model, "model.width, model.depth or model.feedforward")
        model.materialize()
    return model


def _check(config: ModelConfig, samples: Samples) -> None:
    width, heads = config.width, config.heads
    if width % heads:
        raise ConfigError(
            f"model.width={width} is not a multiple of model.heads={heads}, but all heads take as "
            f"many features; set model.width={-(-width // heads) * heads}, or other heads"
        )
    if config.positions == "rotary" and (width // heads) % 2:
        raise ConfigError(
            f"model.positions=rotary turns pairs of features, but model.width={width} over "
            f"model.heads={heads} leaves {width // heads} a head; make it even, or set "
            "model.positions=learned"
        )
    if config.tied and samples.task != "next_token":
        raise ConfigError(
            "model.tied=true shares the weights of the tokens' embedding with the head, but "
            f"samples of a {samples.task} have no vocabulary; set model.tied=false, or use "
            "data=text"
        )
