"""The MLP: plain PyTorch's arithmetic, weights and masks that no split of the work can change."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dist_ml.config.convert import from_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import open_dataset
from dist_ml.errors import ConfigError
from dist_ml.models import (
    LOSSES,
    MLP,
    MODELS,
    Samples,
    WholeLayers,
    build_model,
    choose_objective,
)
from dist_ml.models.blocks import BlockModel, forward
from dist_ml.models.dropout import Dropout
from dist_ml.models.mlp import ACTIVATIONS
from dist_ml.models.step_context import StepContext
from dist_ml.nn.linear import TunedLinear
from dist_ml.nn.tuning import linear_factory
from tests.unit.block_models import assert_blocks_are_the_model

PLAIN = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
}
F64 = torch.float64
SAMPLES = Samples((5,), 3)


def samples(num: int, features: int = 5, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, features, generator=generator, dtype=F64), torch.randint(
        outputs, (num,), generator=generator
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(5, 3), (5, 7, 3), (5, 1, 4, 3)])
def test_outputs_and_gradients_are_those_of_plain_layers(
    activation: str, widths: tuple[int, ...]
) -> None:
    model = MLP(widths, activation, dtype=F64)  # type: ignore[arg-type]
    plain: list[nn.Module] = []
    for index in range(len(widths) - 1):
        layer = nn.Linear(widths[index], widths[index + 1], dtype=F64)
        layer.load_state_dict(
            {name: model.state_dict()[f"layers.{index}.{name}"] for name in ("weight", "bias")}
        )
        plain += [PLAIN[activation], layer] if index else [layer]
    reference = nn.Sequential(*plain)
    x, y = samples(11)
    outputs, expected = model(x), reference(x)
    assert torch.equal(outputs, expected)
    LOSSES["cross_entropy"](outputs, y).backward()
    LOSSES["cross_entropy"](expected, y).backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


def test_the_state_dict_has_plain_names_and_the_kernel_is_a_seam() -> None:
    class Other(nn.Linear):
        pass

    model = build_model(
        ModelConfig(hidden=(4, 6)),
        SAMPLES,
        seed=0,
        layers=WholeLayers(lambda _name, inputs, outputs: Other(inputs, outputs)),
    )
    names = [f"layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert list(model.state_dict()) == names
    assert all(isinstance(layer, Other) for layer in model.layers)
    assert model.widths == (5, 4, 6, 3)
    plain = build_model(ModelConfig(hidden=(4, 6)), SAMPLES, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_weights_depend_on_seed_and_layer_alone() -> None:
    torch.manual_seed(1)
    one = MLP((300, 300, 300), seed=4)
    torch.manual_seed(2)
    again, other = MLP((300, 300, 300, 300), seed=4), MLP((300, 300, 300), seed=5)
    assert torch.equal(one.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)
    assert not torch.equal(again.layers[0].weight, again.layers[1].weight)


@pytest.mark.parametrize(
    ("activation", "gain"), [("relu", math.sqrt(2)), ("tanh", 5 / 3), ("sigmoid", 1.0)]
)
def test_weights_are_uniform_with_the_variance_of_the_gain(activation: str, gain: float) -> None:
    model = MLP((400, 500, 300), activation)  # type: ignore[arg-type]
    for layer, expected in zip(model.layers, (gain, 1.0), strict=True):
        bound = expected * math.sqrt(3 / layer.in_features)  # type: ignore[operator]
        weight = layer.weight.detach()
        assert float(weight.abs().max()) <= bound * (1 + 1e-6)
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert abs(float(weight.mean())) < 0.01 * bound
        assert not layer.bias.any()


def test_fp32_weights_are_the_rounded_fp64_ones() -> None:
    narrow, wide = MLP((70, 90, 3), seed=3), MLP((70, 90, 3), seed=3, dtype=F64)
    assert all(
        torch.equal(a, b.float())
        for a, b in zip(narrow.parameters(), wide.parameters(), strict=True)
    )


def dropout(probability: float, ids: np.ndarray, step: int = 0, layer: int = 0) -> Dropout:
    context = StepContext()
    context.set(step, ids)
    return Dropout(probability, 0, layer, context)


def kept(ids: np.ndarray, num: int, step: int = 3, layer: int = 1, seed: int = 0) -> np.ndarray:
    context = StepContext()
    context.set(step, ids)
    return Dropout(0.5, seed, layer, context).kept(context.sample_keys(seed), num)


class TestDropout:
    def test_nothing_is_dropped_in_evaluation(self) -> None:
        layer = Dropout(0.9, 0, 0, StepContext())
        x = torch.ones(3, 4)
        assert layer(x) is x

    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
    def test_shares_and_scale(self, probability: float) -> None:
        x = dropout(probability, np.arange(400))(torch.ones(400, 501))
        stays = x != 0
        assert float(stays.float().mean()) == pytest.approx(1 - probability, abs=0.005)
        assert torch.allclose(x[stays], torch.tensor(1 / (1 - probability)), rtol=1e-3)
        assert float(x.mean()) == pytest.approx(1, abs=0.02)

    def test_a_mask_depends_on_step_sample_layer_and_seed_but_not_on_company(self) -> None:
        ids = np.array([9, 4, 2**40, 7])
        whole = kept(ids, 67)
        assert np.array_equal(kept(ids[[2]], 67), whole[[2]])
        assert np.array_equal(kept(ids[::-1], 67), whole[::-1])
        assert np.array_equal(kept(ids, 30), whole[:, :30])
        for other in (kept(ids, 67, step=4), kept(ids, 67, layer=0), kept(ids, 67, seed=1)):
            assert 0.3 < (other != whole).mean() < 0.7
        assert 0.3 < (whole[0] != whole[1]).mean() < 0.7

    def test_neighbours_are_uncorrelated(self) -> None:
        stays = kept(np.arange(1000), 64, step=0, layer=0).astype(float)
        correlation = np.corrcoef(stays.T) - np.eye(64)
        assert np.abs(correlation).max() < 5 / math.sqrt(1000)

    def test_the_gradient_has_the_same_mask(self) -> None:
        x = torch.ones(6, 9, dtype=F64, requires_grad=True)
        y = dropout(0.5, np.arange(6))(x)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]

    def test_works_under_bf16_autocast(self) -> None:
        model = MLP((5, 8, 3), dropout=0.5)
        x, y = samples(4)
        model.context.set(0, np.arange(4))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x.float())
            loss = LOSSES["cross_entropy"](outputs, y)
        loss.backward()
        assert outputs.dtype == torch.bfloat16
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())  # type: ignore[union-attr]
        assert forward(model, x.float(), autocast=True).dtype == torch.float32

    def test_keys_are_those_of_the_last_set(self) -> None:
        context = StepContext()
        with pytest.raises(AssertionError, match="call set first"):
            context.sample_keys(0)
        context.set(1, np.arange(3))
        first = context.sample_keys(0)
        assert context.sample_keys(0) is first
        context.set(2, np.arange(3))
        assert not np.array_equal(context.sample_keys(0), first)
        context.clear()
        assert not context.trains


def _losses(size: int, num_microbatches: int, num_steps: int | None = None) -> list[float]:
    """Train in fp64 as `size` ranks with so many microbatches would, one rank after the other."""
    dataset = open_dataset(DataConfig(test_every=5), F64)
    model = build_model(ModelConfig(hidden=(32, 16), dropout=0.3), Samples((64,), 10), 2, F64)
    sampler = GlobalSampler(dataset.train.num_samples, 50, seed=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for step in range(num_steps or sampler.steps_per_epoch):
        optimizer.zero_grad()
        total = 0.0
        for rank in range(size):
            for part in range(num_microbatches):
                ids = sampler.share(0, step, rank, size, part, num_microbatches)
                x, y, *_ = dataset.train.batch(ids)
                model.context.set(step, ids)
                loss = LOSSES["cross_entropy"](model(x), y) / sampler.batch_size_at(step)
                loss.backward()
                total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


def test_losses_do_not_depend_on_ranks_or_microbatches() -> None:
    alone = _losses(1, 1)
    assert alone[-1] < 0.7 * alone[0]
    for size, num_microbatches in ((2, 1), (3, 2), (1, 4), (7, 9)):
        assert np.allclose(_losses(size, num_microbatches, 8), alone[:8], rtol=1e-11)


class TestLosses:
    @pytest.mark.parametrize("num", [0, 1, 6])
    def test_sums_divided_by_the_batch_are_torchs_means(self, num: int) -> None:
        outputs, classes = samples(num, features=4, outputs=4)
        values = outputs.flip(0) * 2
        pairs = [
            (LOSSES["cross_entropy"](outputs, classes), nn.CrossEntropyLoss()(outputs, classes))
        ]
        pairs += [(LOSSES["mse"](outputs, values), nn.MSELoss()(outputs, values))]
        pairs += [
            (
                LOSSES["mse"](outputs, classes),
                nn.MSELoss()(outputs, nn.functional.one_hot(classes, 4).double()),
            )
        ]
        for ours, mean in pairs:
            assert ours.item() == (pytest.approx(mean.item() * num, rel=1e-14) if num else 0)

    def test_the_loss_follows_the_task_unless_named(self) -> None:
        objective = choose_objective(ModelConfig(), "classification")
        assert objective.loss_sum is LOSSES["cross_entropy"]
        assert (objective.metric_names, objective.num_slots) == (("correct",), 2)
        regression = choose_objective(ModelConfig(), "regression")
        assert (regression.loss_sum, regression.num_slots) == (LOSSES["mse"], 1)
        assert regression.metric_sums(torch.ones(2), torch.ones(2)) == ()
        named = choose_objective(ModelConfig(loss="mse"), "classification")
        assert named.loss_sum is LOSSES["mse"]
        with pytest.raises(ConfigError, match=r"model.loss=cross_entropy needs classes"):
            choose_objective(ModelConfig(loss="cross_entropy"), "regression")

    def test_right_answers_are_counted(self) -> None:
        outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
        objective = choose_objective(ModelConfig(), "classification")
        (correct,) = objective.metric_sums(outputs, torch.tensor([1, 1, 1]))
        assert int(correct) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": [4, 0]}, "model.hidden[1]=0 is no width"),
        ({"dropout": 1.0}, "model.dropout=1.0 is no probability below 1"),
        (
            {"activation": "rely"},
            "model.activation=rely is not one of relu, gelu, tanh, sigmoid, silu (did you mean "
            "relu?)",
        ),
    ],
)
def test_a_model_that_cannot_be_is_told(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(from_mapping(ModelConfig, fields, "model"), SAMPLES, seed=0)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("hidden", "num_outputs", "layer"),
    [
        ((10**12,), 3, "5 inputs and 1000000000000 outputs"),
        ((), 10**12, "5 inputs and 1000000000000 outputs"),
        ((8, 10**300, 2), 3, f"8 inputs and 1{'0' * 300} outputs"),
        ((10**6, 10**6), 3, "1000000 inputs and 1000000 outputs"),
    ],
    ids=["hidden", "outputs", "beyond floats", "product"],
)
def test_a_model_that_cannot_be_held_is_told_with_its_size(
    hidden: tuple[int, ...], num_outputs: int, layer: str
) -> None:
    with pytest.raises(ConfigError, match=rf"take \d+ [TE]B, .*layer of {layer}, but this machine"):
        build_model(ModelConfig(hidden=hidden), Samples((5,), num_outputs), seed=0)


def test_a_new_model_or_loss_is_its_module_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mine", MODELS["mlp"])
    assert build_model(from_mapping(ModelConfig, {"name": "mine"}), SAMPLES, seed=0).blocks()
    monkeypatch.setitem(LOSSES, "absolute", lambda outputs, y: (outputs - y).abs().sum())
    objective = choose_objective(from_mapping(ModelConfig, {"loss": "absolute"}), "regression")
    assert objective.loss_sum is LOSSES["absolute"]
    assert (objective.num_slots, objective.metric_sums(x := torch.ones(2), x)) == (1, ())
    with pytest.raises(ConfigError, match=r"model.name=mlq is not one of mlp, .*mine .*mean mlp"):
        build_model(ModelConfig(name="mlq"), SAMPLES, seed=0)
    with pytest.raises(ConfigError, match=r"model.loss=mae is not one of cross_entropy, mse, abs"):
        choose_objective(ModelConfig(loss="mae"), "regression")


@pytest.mark.parametrize("kernel", ["torch", "numpy", "auto"])
def test_a_models_blocks_run_on_the_chosen_kernel_and_fill_the_gradient_buffer(kernel: str) -> None:
    """Layers above and below the size from which they write their gradients themselves."""
    config = ModelConfig(hidden=(400, 400))
    plain = build_model(config, SAMPLES, seed=0, dtype=F64)
    model = build_model(
        config, SAMPLES, seed=0, dtype=F64, layers=WholeLayers(linear_factory(kernel))
    )
    held = [module for block in model.blocks() for module in block.module.modules()]
    layers = [module for module in held if isinstance(module, nn.Linear)]
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert isinstance(layers[1], TunedLinear)
    gradients = FlatGradients(model.parameters(), 1)
    x, y = samples(11)
    for _ in range(2):
        gradients.begin()
        LOSSES["cross_entropy"](model(x), y).backward()
        gradients.complete()
    LOSSES["cross_entropy"](plain(x), y).backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in plain.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(gradients.flat, expected, rtol=1e-9, atol=1e-12)
    assert expected.any()


def test_blocks_in_order_are_the_model_and_hold_its_parameters_in_order() -> None:
    model = build_model(ModelConfig(hidden=(4, 6), dropout=0.4), SAMPLES, seed=1, dtype=F64)
    x, _ = samples(7)
    model.context.set(3, np.arange(7))
    assert not torch.equal(model(x), model(x.flip(0)).flip(0))
    assert_blocks_are_the_model(model, x, ["layers.0", "layers.1", "layers.2"])


def test_a_model_without_blocks_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="blocks"):
        type("Nothing", (BlockModel,), {})()
