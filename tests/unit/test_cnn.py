"""The residual CNN: plain PyTorch's arithmetic, numbers that no split of the work can change, and
what it refuses.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from dist_ml.config.convert import from_mapping
from dist_ml.config.model import ModelConfig
from dist_ml.counter_random import stream
from dist_ml.errors import ConfigError
from dist_ml.models import CNN, LOSSES, MODELS, Samples, WholeLayers, build_model
from dist_ml.models.blocks import forward
from dist_ml.models.initialise import initialise_convolution
from dist_ml.models.spread import WHOLE, Cut, Spread
from dist_ml.partition import Range
from dist_ml.placement import Share
from tests.unit.block_models import assert_blocks_are_the_model

F64 = torch.float64
DIGITS = Samples((1, 8, 8), 10)
SMALL = ModelConfig("cnn", channels=(4, 8, 8), blocks_per_stage=2, groups=2)
UNEVEN = Samples((3, 7, 5), 6)


def small(samples: Samples = UNEVEN, seed: int = 1, dtype: torch.dtype = F64, **fields: Any) -> CNN:
    config = from_mapping(
        ModelConfig,
        {"name": "cnn", "channels": [4, 8, 8], "blocks_per_stage": 2, "groups": 2, **fields},
    )
    model = build_model(config, samples, seed, dtype)
    assert isinstance(model, CNN)
    return model


def images(num: int, samples: Samples = UNEVEN) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, samples.num_features, generator=generator, dtype=F64)
    return x, torch.randint(samples.num_outputs, (num,), generator=generator)


def with_other_affines(model: CNN) -> CNN:
    """Scales and shifts of the norms away from one and zero, which hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            shift = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.detach().add_(0.2 * shift)
    return model


def normalised(x: torch.Tensor, groups: int, weights: dict[str, torch.Tensor], name: str) -> Any:
    """Group norm written out, with ReLU behind it."""
    parts = x.reshape(len(x), groups, -1)
    centred = parts - parts.mean(2, keepdim=True)
    scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (scaled.reshape(x.shape) * scale + shift).clamp(min=0)


def reference(weights: dict[str, torch.Tensor], x: torch.Tensor, shape: Any) -> torch.Tensor:
    """The network of `SMALL` written out; the shortcut by a fixed convolution."""

    def convolved(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        return conv2d(pad(x, (1, 1, 1, 1)), weights[f"{name}.weight"], stride=stride)

    x = convolved(x.reshape(-1, *shape), "stem.conv1")
    x = convolved(normalised(x, 2, weights, "stem.norm"), "stem.conv2")
    for i, channels in enumerate((4, 8, 8)):
        for j in range(2):
            name, stride = f"stages.{i}.{j}", 2 if (i, j) in ((1, 0), (2, 0)) else 1
            change = convolved(normalised(x, 2, weights, f"{name}.norm1"), f"{name}.conv1", stride)
            change = convolved(normalised(change, 2, weights, f"{name}.norm2"), f"{name}.conv2")
            if stride == 2:
                rows, columns = x.shape[2] % 2, x.shape[3] % 2
                ones = pad(torch.ones_like(x[:1, :1]), (0, columns, 0, rows))
                taken = pad(x, (0, columns, 0, rows))
                window = torch.eye(channels, x.shape[1], dtype=x.dtype)[:, :, None, None]
                x = conv2d(taken, window.expand(-1, -1, 2, 2), stride=2)
                x = x / conv2d(ones, torch.ones(1, 1, 2, 2, dtype=x.dtype), stride=2)
            x = x + change
    pooled = normalised(x, 2, weights, "head.norm").flatten(2).mean(2)
    return pooled @ weights["head.linear.weight"].T + weights["head.linear.bias"]


@pytest.mark.parametrize("samples", [UNEVEN, Samples((1, 8, 8), 10), Samples((2, 1, 9), 3)])
def test_outputs_and_gradients_are_those_of_the_network_written_out(samples: Samples) -> None:
    model = with_other_affines(small(samples))
    x, y = images(5, samples)
    weights = {name: value.clone().requires_grad_() for name, value in model.state_dict().items()}
    outputs, expected = model(x), reference(weights, x, samples.shape)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    LOSSES["cross_entropy"](outputs, y).backward()
    LOSSES["cross_entropy"](expected, y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-8, atol=1e-10)


def test_a_samples_outputs_are_the_same_in_any_company() -> None:
    model = with_other_affines(small())
    x, _ = images(6)
    whole = model(x)
    for ids in ([3], [5, 0], [1, 2, 3, 4]):
        torch.testing.assert_close(model(x[ids]), whole[ids], rtol=1e-12, atol=1e-12)


def test_the_state_dict_has_plain_names() -> None:
    norm = ("weight", "bias")
    names = ["stem.conv1.weight", *(f"stem.norm.{n}" for n in norm), "stem.conv2.weight"]
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        for k in (1, 2):
            names += [*(f"stages.{i}.{j}.norm{k}.{n}" for n in norm)]
            names.append(f"stages.{i}.{j}.conv{k}.weight")
    names += [f"head.{layer}.{n}" for layer in ("norm", "linear") for n in norm]
    assert list(small().state_dict()) == names


def test_blocks_in_order_are_the_model_and_hold_its_parameters_in_order() -> None:
    model = small(dropout=0.4)
    x, _ = images(7)
    model.context.set(3, np.arange(7))
    expected = model(x)
    assert not torch.equal(expected, model(x.flip(0)).flip(0))
    assert_blocks_are_the_model(
        model, x, ["stem", *(f"stages.{i}.{j}" for i in range(3) for j in range(2)), "head"]
    )
    model.context.clear()
    assert not torch.equal(model(x), expected)


def test_weights_are_drawn_by_seed_and_name_and_for_any_blocks_alone() -> None:
    torch.manual_seed(1)
    model = small()
    torch.manual_seed(2)
    deeper, other = small(blocks_per_stage=3), small(seed=2)
    assert torch.equal(model.stem.conv1.weight, deeper.stem.conv1.weight)
    weights, others = model.state_dict(), other.state_dict()
    drawn = [name for name in weights if "conv" in name or name == "head.linear.weight"]
    assert len({float(weights[name].flatten()[0]) for name in drawn}) == len(drawn)
    assert not any(torch.equal(weights[name], others[name]) for name in drawn)
    with torch.device("meta"):
        bare = small()
    blocks = bare.blocks()
    bare.materialize(blocks[5:])
    bare.materialize(blocks[:5])
    assert list(bare.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in bare.state_dict().items())


def test_weights_are_uniform_with_hes_variance() -> None:
    model = CNN((40, 8, 8), (64, 72), 10)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            inputs = 9 * layer.in_channels
            gain = 1.0 if name == "stem.conv1" else math.sqrt(2)
            weight = layer.weight.detach()
            assert float(weight.abs().max()) <= gain * math.sqrt(3 / inputs) * (1 + 1e-6)
            assert float(weight.std()) == pytest.approx(gain / math.sqrt(inputs), rel=0.02)
        elif isinstance(layer, nn.GroupNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_a_part_of_a_convolution_is_drawn_as_that_part_of_the_whole() -> None:
    whole, part = nn.Conv2d(6, 8, 3, bias=False), nn.Conv2d(2, 3, 3)
    region = (Range(4, 7), Range(3, 5), Range(0, 3), Range(0, 3))
    part.weight.share = Share((8, 6, 3, 3), region, 1)  # type: ignore[attr-defined]
    for layer in (whole, part):
        initialise_convolution(layer, 1.0, stream("a layer"))
    assert torch.equal(part.weight, whole.weight[4:7, 3:5])
    assert part.bias is not None
    assert not part.bias.any()


class PairedLayers(WholeLayers):
    """Whole layers, which say of the channels what layers split in pairs do."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []

    def convolution(
        self,
        name: str,
        channels_in: int,
        channels_out: int,
        kernel: int,
        given: Spread,
        stride: int = 1,
        units: tuple[int, int] = (1, 1),
    ) -> tuple[nn.Conv2d, Spread]:
        self.asked.append((name, given, units))
        layer, _ = super().convolution(name, channels_in, channels_out, kernel, given, stride)
        return layer, _paired(given)

    def group_norm(self, name: str, groups: int, channels: int, given: Spread) -> nn.GroupNorm:
        self.asked.append((name, given, (groups, channels)))
        return super().group_norm(name, groups, channels, given)

    def linear(self, name: str, inputs: int, outputs: int, given: Spread = WHOLE, **_: Any) -> Any:
        self.asked.append((name, given, None))
        return super().linear(name, inputs, outputs)[0], _paired(given)


SPLIT = Spread(features=(Cut("operator", 2, 0),))


def _paired(given: Spread) -> Spread:
    return SPLIT if given == WHOLE else WHOLE


def test_the_stream_between_parts_is_whole_and_channels_inside_may_be_split() -> None:
    layers = PairedLayers()
    model = CNN((3, 7, 5), (4, 8), 6, 1, 2, layers=layers)
    assert layers.asked == [
        ("stem.conv1", WHOLE, (1, 2)),
        ("stem.norm", SPLIT, (2, 4)),
        ("stem.conv2", SPLIT, (2, 1)),
        ("stages.0.0.norm1", WHOLE, (2, 4)),
        ("stages.0.0.conv1", WHOLE, (1, 2)),
        ("stages.0.0.norm2", SPLIT, (2, 4)),
        ("stages.0.0.conv2", SPLIT, (2, 1)),
        ("stages.1.0.norm1", WHOLE, (2, 4)),
        ("stages.1.0.conv1", WHOLE, (1, 4)),
        ("stages.1.0.norm2", SPLIT, (2, 8)),
        ("stages.1.0.conv2", SPLIT, (4, 1)),
        ("head.norm", WHOLE, (2, 8)),
        ("head.linear", WHOLE, None),
    ]
    assert model.output_spread == SPLIT


def test_works_under_bf16_autocast() -> None:
    model = small(dropout=0.5, dtype=torch.float32)
    x, y = images(4)
    model.context.set(0, np.arange(4))
    outputs = forward(model, x.float(), autocast=True)
    assert outputs.dtype == torch.float32
    LOSSES["cross_entropy"](outputs, y).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())  # type: ignore[union-attr]
    model.context.clear()
    rounded, exact = forward(model, x.float(), autocast=True), model(x.float())
    assert torch.allclose(rounded, exact, atol=0.1)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize(
    ("shape", "fields", "words"),
    [
        ((64,), {}, r"takes images \[channels, height, width\], but .* is \[64\]; use data=digits"),
        ((3, 2, 8, 8), {}, r"a sample of this data is \[3, 2, 8, 8\]"),
        ((1, 8, 8), {"channels": []}, r"channels=\[\] makes no stage"),
        ((1, 8, 8), {"channels": [8, 0]}, r"channels\[1\]=0 is less than 8"),
        ((1, 8, 8), {"channels": [0]}, r"channels\[0\]=0 is less than 1"),
        ((1, 8, 8), {"channels": [16, 8]}, r"channels\[1\]=8 is less than 16.*don't let them"),
        ((1, 8, 8), {"channels": [8, 12]}, r"channels\[1\]=12 can't be .*groups=8 .*a multiple"),
        ((1, 8, 8), {"blocks_per_stage": 0}, r"blocks_per_stage=0 and groups=8 must be at least 1"),
        ((1, 8, 8), {"groups": 0}, r"groups=0 must be at least 1"),
        (
            (1, 4, 3),
            {"channels": [8] * 3},
            r"groups=8 leaves one value .* 4 x 3 .* 8 channels",
        ),
        ((1, 8, 8), {"channels": [8 * 10**7]}, r"take \d+ [TPE]B, .*smaller model.channels or"),
        ((1, 8, 8), {"name": "cnm"}, r"model.name=cnm is not one of mlp, cnn.*did you mean cnn"),
    ],
)
def test_a_model_that_cannot_be_is_told(
    shape: tuple[int, ...], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(
            from_mapping(ModelConfig, {"name": "cnn", **fields}), Samples(shape, 10), seed=0
        )


def test_images_may_become_one_pixel_of_groups_of_several_channels() -> None:
    model = CNN((1, 1, 1), (4, 4), 3, groups=2, dtype=F64)
    x = torch.randn(1, 1, dtype=F64)
    assert torch.isfinite(model(x)).all()
    assert len(model(torch.empty(0, 1, dtype=F64))) == 0


def test_it_says_what_it_reads() -> None:
    fields = {"channels", "blocks_per_stage", "groups", "dropout"}
    assert set(MODELS["cnn"].reads) == {f"model.{field}" for field in fields}
