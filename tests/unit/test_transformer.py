"""The Transformer: torch's own layers' arithmetic, attention that looks back only, positions, and
masks and weights that no split of the work can change.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.errors import ConfigError
from dist_ml.models import MODELS, Samples, Transformer, WholeLayers, build_model
from dist_ml.models.attention import SelfAttention
from dist_ml.models.blocks import INPUTS, forward
from dist_ml.models.dropout import Dropout
from dist_ml.models.rotary import BASE, Rotary
from dist_ml.models.spread import WHOLE, Cut, Spread
from dist_ml.models.step_context import StepContext
from dist_ml.models.tokens import Tokens
from dist_ml.nn.tuning import linear_factory

F64 = torch.float64
CONFIG = ModelConfig("transformer", width=12, depth=2, heads=3, activation="gelu")
TEXT = Samples((9,), 17, "next_token")
IMAGES = Samples((2, 5, 4), 3)


def build(samples: Samples = TEXT, dtype: torch.dtype = F64, **changes: Any) -> Transformer:
    """With weights that are no special case: norms that do something, biases that aren't zero."""
    model = build_model(dataclasses.replace(CONFIG, **changes), samples, seed=1, dtype=dtype)
    assert isinstance(model, Transformer)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.data += 0.3 * noise.to(dtype)
    return model


def text(num: int, samples: Samples = TEXT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(samples.num_outputs, (num, *samples.shape), generator=generator)


def plain_layer(model: Transformer, index: int) -> nn.TransformerEncoderLayer:
    """Torch's pre-norm layer with our weights; its rows are [3, heads, size], ours [heads, 3,
    size].
    """
    config = model._config
    width, heads = config.width, config.heads
    layer = nn.TransformerEncoderLayer(
        width,
        heads,
        config.feedforward or 4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        dtype=F64,
    )
    state = model.state_dict()
    prefix = f"layers.{index}"

    def by_kind(rows: torch.Tensor) -> torch.Tensor:
        parts = rows.view(heads, 3, width // heads, *rows.shape[1:])
        return parts.transpose(0, 1).reshape(rows.shape)

    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": by_kind(state[f"{prefix}.attention.qkv.weight"]),
            "self_attn.in_proj_bias": by_kind(state[f"{prefix}.attention.qkv.bias"]),
            **{
                f"{theirs}.{kind}": state[f"{prefix}.{ours}.{kind}"]
                for theirs, ours in {
                    "self_attn.out_proj": "attention.output",
                    "linear1": "feedforward.expand",
                    "linear2": "feedforward.contract",
                    "norm1": "attention.norm",
                    "norm2": "feedforward.norm",
                }.items()
                for kind in ("weight", "bias")
            },
        }
    )
    return layer.train()  # torch's fast path for inference aside


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_with_learned_positions_is_made_of_torchs_layers(tied: bool) -> None:
    """Outputs, and the gradient at the embedding, which passes through everything."""
    model = build(positions="learned", tied=tied, feedforward=20)
    ids = text(4)
    length = ids.shape[1]
    embedding = model.embedding.weight.detach().clone().requires_grad_()
    x = embedding[ids] + model.state_dict()["positions.weight"]
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=F64)
    for index in range(2):
        x = plain_layer(model, index)(x, src_mask=mask)
    x = nn.functional.layer_norm(x, (12,), model.norm.weight.detach(), model.norm.bias.detach())
    expected = x @ (embedding if tied else model.state_dict()["head.weight"]).T
    if not tied:
        expected = expected + model.state_dict()["head.bias"]
    found = model(ids)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(found.shape, dtype=F64)
    found.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(model.embedding.weight.grad, embedding.grad, rtol=1e-9, atol=1e-10)


def test_an_encoder_of_images_is_torchs_layers_on_rows_and_their_mean() -> None:
    model = build(IMAGES, positions="learned")
    images = torch.randn(3, 2, 5, 4, dtype=F64)
    rows = torch.stack([image.permute(1, 0, 2).reshape(5, 8) for image in images])
    x = model.embedding(rows) + model.state_dict()["positions.weight"]
    for index in range(2):
        x = plain_layer(model, index)(x)
    expected = model.head(model.norm(x).mean(1))
    torch.testing.assert_close(model(images.flatten(1)), expected, rtol=1e-10, atol=1e-10)
    assert model(images.flatten(1)).shape == (3, 3)


def rotated_by_hand(x: torch.Tensor, position: int) -> torch.Tensor:
    """One head's features [d], pair after pair by a rotation matrix."""
    pairs = []
    for j, pair in enumerate(x.view(-1, 2)):
        angle = torch.tensor(position * BASE ** (-2 * j / len(x)), dtype=F64)
        matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        pairs.append(matrix @ pair)
    return torch.cat(pairs)


def test_rotary_positions_turn_pairs_of_features() -> None:
    x = torch.randn(2, 7, 3, 2, 6, dtype=F64)  # b, positions, heads, query and key, size
    found = Rotary()(x)
    for place in np.ndindex(2, 7, 3, 2):
        torch.testing.assert_close(found[place], rotated_by_hand(x[place], place[1]))


def test_with_rotary_positions_attention_knows_distances_only() -> None:
    rotary = Rotary()
    query, key = torch.randn(2, 1, 1, 8, dtype=F64)
    turned = [rotary(part.expand(1, 20, 8)[:, :, None])[0, :, 0] for part in (query, key)]
    products = turned[0] @ turned[1].T
    for distance in range(-19, 20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_a_decoder_with_rotary_positions_written_out() -> None:
    """One layer, head by head and position by position."""
    model = build(depth=1)
    (ids,) = text(1)
    state = model.state_dict()
    stream = state["embedding.weight"][ids]
    half = model.layers[0]["attention"]  # type: ignore[index]
    rows = half.qkv(half.norm(stream)).view(9, 3, 3, 4)
    mixed = torch.zeros(9, 3, 4, dtype=F64)
    for head in range(3):
        for i in range(9):
            query = rotated_by_hand(rows[i, head, 0], i)
            keys = [rotated_by_hand(rows[j, head, 1], j) for j in range(i + 1)]
            weights = torch.stack([query @ key / 4**0.5 for key in keys]).softmax(0)
            mixed[i, head] = weights @ rows[: i + 1, head, 2]
    stream = stream + half.output(mixed.view(9, 12))
    half = model.layers[0]["feedforward"]  # type: ignore[index]
    stream = stream + half.contract(nn.functional.gelu(half.expand(half.norm(stream))))
    torch.testing.assert_close(model(ids[None])[0], model.head(model.norm(stream)))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_what_comes_later_changes_nothing_before(positions: str) -> None:
    model = build(positions=positions)
    ids = text(3)
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    found, other = model(ids), model(changed)
    assert torch.equal(found[:, :5], other[:, :5])
    assert not torch.isclose(found[:, 5:], other[:, 5:]).all(2).any()


def test_masks_are_the_same_in_any_split_of_a_batch() -> None:
    model = build(dropout=0.3)
    ids, sample_ids = text(6), np.arange(40, 46)
    model.context.set(7, sample_ids)
    whole = model(ids)
    order = np.array([4, 0, 3])
    model.context.set(7, sample_ids[order])
    torch.testing.assert_close(model(ids[order]), whole[order])
    model.context.set(8, sample_ids)
    assert not torch.isclose(model(ids), whole).any()
    model.context.clear()
    torch.testing.assert_close(model(ids), build()(ids))


def test_a_mask_differs_by_position_and_is_cut_as_the_activation_is() -> None:
    context = StepContext()
    context.set(0, np.arange(64))
    ones = torch.ones(64, 10, 24)
    whole = Dropout(0.25, 0, 0, context)(ones)
    assert abs(float((whole == 0).float().mean()) - 0.25) < 0.01
    assert whole.max() == pytest.approx(4 / 3)
    assert not torch.equal(whole[:, 0], whole[:, 1])
    for own in range(3):
        spread = Spread((Cut("rows", 2, 1),), (Cut("columns", 3, own),))
        part = Dropout(0.25, 0, 0, context, 24, spread)(ones[32:, :, :8])
        assert torch.equal(part, whole[32:, :, 8 * own : 8 * own + 8])


def test_weights_are_the_same_made_at_once_or_block_by_block() -> None:
    for changes in ({}, {"positions": "learned", "tied": True}):
        config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
        whole = build_model(config, TEXT, seed=3)
        with torch.device("meta"):
            later = build_model(config, TEXT, seed=3)
        assert all(parameter.is_meta for parameter in later.parameters())
        for block in reversed(later.blocks()):
            later.materialize([block])
        assert list(later.state_dict()) == list(whole.state_dict())
        for name, weight in whole.state_dict().items():
            assert torch.equal(later.state_dict()[name], weight), name
        assert later.context is not whole.context


def test_the_residual_stream_keeps_its_size() -> None:
    """Layers keep variances; what is added to the stream is 1 / sqrt(2 depth) of that."""
    model = build_model(dataclasses.replace(CONFIG, width=96, depth=8), TEXT, seed=0)
    state = model.state_dict()
    assert float(state["layers.3.attention.qkv.weight"].std()) == pytest.approx(96**-0.5, rel=0.05)
    for name, inputs in (("attention.output", 96), ("feedforward.contract", 384)):
        found = float(state[f"layers.3.{name}.weight"].std())
        assert found == pytest.approx((16 * inputs) ** -0.5, rel=0.05)
    assert float(state["embedding.weight"].std()) == pytest.approx(96**-0.5, rel=0.05)
    assert not state["layers.3.attention.qkv.bias"].any()
    assert (state["norm.weight"] == 1).all()


def test_blocks_are_a_chain_that_a_pipeline_can_cut() -> None:
    model = build()
    names = [block.name for block in model.blocks()]
    halves = [f"layers.{i}.{half}" for i in range(2) for half in ("attention", "feedforward")]
    assert names == ["embedding", *halves, "head"]
    assert [block.sources for block in model.blocks()] == [(INPUTS,), *zip(names[:-1])]
    x = text(2)
    for block in model.blocks():
        x = block.module(x)
        assert x.shape[:2] == (2, 9)
    assert torch.equal(x, model(text(2)))
    held = [p for block in model.blocks() for p in block.module.parameters()]
    assert {*held} == {*model.parameters()}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_heads_may_be_split_over_ranks_unevenly() -> None:
    """Of three heads one rank computes two, another one, a third none; their outputs add up."""
    whole = build().layers[0]["attention"]  # type: ignore[index]
    x = torch.randn(2, 9, 12, dtype=F64)
    parts = []
    for start, stop in ((0, 2), (2, 3), (3, 3)):
        qkv = nn.Linear(12, 12 * (stop - start), dtype=F64)
        output = nn.Linear(4 * (stop - start), 12, bias=False, dtype=F64)
        qkv.weight.data = whole.qkv.weight.data[12 * start : 12 * stop]
        qkv.bias.data = whole.qkv.bias.data[12 * start : 12 * stop]
        output.weight.data = whole.output.weight.data[:, 4 * start : 4 * stop]
        half = SelfAttention(whole.norm, qkv, output, None, 4, True, Rotary())
        parts.append(half(x) - x)
    expected = whole(x) - x - whole.output.bias
    torch.testing.assert_close(sum(parts), expected)


class Recording(WholeLayers):
    """Whole layers that say what they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []

    def linear(self, name, inputs, outputs, given=WHOLE, units=(1, 1)):  # type: ignore[no-untyped-def]
        """Hands on a spread that tells who made it, and back again after every second layer."""
        self.asked.append((name, inputs, outputs, units, given))
        layer, _ = super().linear(name, inputs, outputs, given, units)
        return layer, INSIDE if given == WHOLE and name != "head" else WHOLE


INSIDE = Spread((), (Cut("operator", 1, 0),))


def test_the_factory_is_asked_for_every_layer_and_told_how_its_inputs_lie() -> None:
    factory = Recording()
    config = dataclasses.replace(CONFIG, depth=1)
    model = build_model(config, TEXT, seed=0, layers=factory)
    assert factory.asked == [
        ("layers.0.attention.qkv", 12, 36, (1, 12), WHOLE),
        ("layers.0.attention.output", 12, 12, (4, 1), INSIDE),
        ("layers.0.feedforward.expand", 12, 48, (1, 1), WHOLE),
        ("layers.0.feedforward.contract", 48, 12, (1, 1), INSIDE),
        ("head", 12, 17, (1, 1), WHOLE),
    ]
    assert model.output_spread == WHOLE
    assert model.rows_per_sample == 9


def test_layers_that_write_their_gradients_take_part() -> None:
    """Wide enough for gradient sinks: the same outputs and gradients as torch's layers."""
    config = dataclasses.replace(CONFIG, width=216, depth=1, heads=2)
    plain, tuned = (
        build_model(config, TEXT, 0, F64, WholeLayers(make) if make else None)
        for make in (None, linear_factory("torch"))
    )
    outputs = [model(text(2)) for model in (plain, tuned)]
    torch.testing.assert_close(*outputs)
    for found in outputs:
        found.square().sum().backward()
    for mine, theirs in zip(tuned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("samples", [TEXT, IMAGES])
def test_bf16_products_stay_close_and_outputs_are_fp32(samples: Samples) -> None:
    model = build(samples, torch.float32)
    inputs = text(4) if samples is TEXT else torch.randn(4, 40)
    exact, found = model(inputs), forward(model, inputs, autocast=True)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [
        (TEXT, Tokens(9)),
        (IMAGES, Tokens(5, 8, 2)),
        (Samples((64,), 10), Tokens(8, 8)),
        (Samples((30,), 10), Tokens(6, 5)),
        (Samples((7,), 10), Tokens(7, 1)),
    ],
)
def test_what_the_tokens_of_a_sample_are(samples: Samples, tokens: Tokens) -> None:
    assert Tokens.of(samples) == tokens
    if tokens.num_features:
        numbers = torch.arange(2.0 * samples.num_features).view(2, -1)
        cut = tokens.cut(numbers)
        assert cut.shape == (2, tokens.num, tokens.num_features)
        if tokens.channels == 1:
            assert torch.equal(cut.flatten(1), numbers)


@pytest.mark.parametrize(
    ("changes", "samples", "words"),
    [
        ({"heads": 5}, TEXT, "width=12 is not a multiple of model.heads=5.*set model.width=15"),
        ({"heads": 4}, TEXT, "leaves 3 a head; make it even, or set model.positions=learned"),
        ({"tied": True}, IMAGES, "samples of a classification have no vocabulary"),
        ({"activation": "gelo"}, TEXT, "did you mean gelu"),
        ({"width": 1 << 20, "heads": 1}, TEXT, "use a smaller model.width, model.depth"),
        ({"name": "mlp"}, TEXT, "model=mlp can't be trained for the next_token.*model=transformer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    changes: dict[str, Any], samples: Samples, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(dataclasses.replace(CONFIG, **changes), samples, seed=0)


@pytest.mark.parametrize("key", ["width", "depth", "heads", "feedforward"])
def test_a_size_is_at_least_one(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=0 makes no layer"):
        dataclasses.replace(CONFIG, **{key: 0})


def test_odd_heads_are_right_with_learned_positions() -> None:
    assert build(heads=4, positions="learned")(text(2)).shape == (2, 9, 17)


def test_the_family_says_what_the_transformer_reads() -> None:
    fields = {f"model.{field.name}" for field in dataclasses.fields(ModelConfig)}
    assert {*MODELS["transformer"].reads} <= fields
