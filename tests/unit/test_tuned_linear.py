"""`TunedLinear` against torch's layer, its kernels, and gradient sinks."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError
from dist_ml.kernels import kernels, tuner
from dist_ml.kernels.tuner import Tuner, machine
from dist_ml.measure import cache
from dist_ml.nn import linear, tuning
from dist_ml.nn.gradient_sink import GradientSink
from dist_ml.nn.linear import SINK_WORDS, Products, TunedLinear
from dist_ml.nn.tuning import linear_factory, tune
from tests.thread_world import run_ranks


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def alone() -> Communicator:
    return Communicator(Loopback())


@pytest.mark.parametrize("name", ["numpy", "openblas-haswell", "torch"])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (5,)])
def test_linear_is_torchs(name: str, shape: tuple[int, ...]) -> None:
    if name not in kernels.usable():
        pytest.skip(f"{name} can't run on this processor")
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False)).double()
    without_bias = TunedLinear(nn.Linear(6, 4, bias=False), name, Tuner())
    first = linear_factory(name)("0", 5, 6)
    assert type(first) is (nn.Linear if name == "torch" else TunedLinear)
    tuned = nn.Sequential(first, nn.ReLU(), without_bias).double()
    tuned.load_state_dict(plain.state_dict())
    assert list(tuned.state_dict()) == list(plain.state_dict())
    x, y = torch.randn(shape, dtype=torch.float64, requires_grad=True), None
    gradients = []
    for model in (plain, tuned):
        y = model(x)
        gradients.append(torch.autograd.grad((y**2).sum(), [x, *model.parameters()]))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_linear_gradients_by_finite_differences() -> None:
    layer = linear_factory("numpy")("layer", 4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_auto_tunes_what_it_uses_and_stays_torch_where_little_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(shapes: list[tuner.Shape], _: int) -> dict[str, dict[str, float]]:
        return {shape.key: {"torch": 1.0, "numpy": 2.0} for shape in shapes}

    monkeypatch.setattr(tuner, "_measure", measure)
    layer = linear_factory("auto")("layer", 8, 8)
    tune(nn.Sequential(layer), [4], alone())
    assert isinstance(layer, TunedLinear)
    assert all(Tuner().rates(shape) for shape in layer.shapes(4))
    assert layer._choose(4) == Products("torch", "torch", "torch")


def test_auto_uses_what_was_measured_faster() -> None:
    layer = linear_factory("auto")("layer", 1024, 1024)
    assert isinstance(layer, TunedLinear)
    measured = {shape.key: {"torch": 50.0, "numpy": 100.0} for shape in layer.shapes(256)}
    cache.store("gemm-kernels", {machine(torch.get_num_threads()): measured})
    layer.choose_again()
    assert layer._choose(256) == Products("numpy", "numpy", "numpy")
    assert layer._choose(3000) == Products("torch", "torch", "torch")


def test_torchs_small_layers_are_torchs_own_and_large_ones_write_their_gradients() -> None:
    make = linear_factory("torch")
    assert type(make("small", 2, 2)) is nn.Linear
    assert hasattr(make("large", 400, 400).weight, "gradient_sink")


def test_a_kernel_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        linear_factory("nonsense")


def test_autocast_and_half_precision_stay_torchs() -> None:
    model = linear_factory("numpy")("layer", 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 4)).dtype == torch.bfloat16
    assert model.bfloat16()(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16


def sinking(in_features: int, out_features: int, monkeypatch: pytest.MonkeyPatch) -> TunedLinear:
    """A layer on numpy's kernel that writes its gradient where a sink says."""
    monkeypatch.setattr(linear, "SINK_WORDS", 1)
    layer = linear_factory("numpy")("layer", in_features, out_features)
    assert isinstance(layer, TunedLinear)
    return layer


def test_a_sink_is_overwritten_once_a_step_and_added_to_after_that() -> None:
    sink, view = GradientSink(), torch.full((2, 3), float("nan"))
    assert not sink.attached
    sink.attach(view)
    assert sink.attached
    calls: list[float] = []

    def product(c: torch.Tensor, beta: float) -> None:
        calls.append(beta)
        c.copy_(torch.ones(2, 3) + (beta * c if beta else 0.0))

    for _ in range(2):
        sink.clear()
        sink.write(product)
        sink.write(product)
        assert torch.equal(sink.zero_if_empty(), torch.full((2, 3), 2.0))
    assert calls == [0.0, 1.0, 0.0, 1.0]


def test_a_sink_that_nothing_was_written_to_holds_zeros() -> None:
    sink, view = GradientSink(), torch.full((2, 2), float("nan"))
    sink.attach(view)
    assert torch.equal(sink.zero_if_empty(), torch.zeros(2, 2))
    view += 3  # what autograd adds after that is kept
    assert torch.equal(sink.zero_if_empty(), torch.full((2, 2), 3.0))


def test_a_sink_without_a_view_asserts() -> None:
    with pytest.raises(AssertionError):
        GradientSink().zero_if_empty()
    with pytest.raises(AssertionError):
        GradientSink().write(lambda *_: None)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_gradient_goes_into_the_sink(
    micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sinking(5, 4, monkeypatch)
    sink = layer.weight.gradient_sink
    view = torch.full_like(layer.weight, float("nan"))
    sink.attach(view)
    plain = nn.Linear(5, 4)
    plain.load_state_dict(layer.state_dict())
    for _ in range(2):  # a second step starts anew
        sink.clear()
        plain.zero_grad()
        layer.bias.grad = None
        for _ in range(micro_batches):
            x = torch.randn(6, 5)
            (layer(x) ** 2).sum().backward()
            (plain(x) ** 2).sum().backward()
        torch.testing.assert_close(view, plain.weight.grad)
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad)
        assert layer.weight.grad is None


def test_mixed_paths_add_up_in_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward under autocast leaves the gradient to autograd, which adds to the same buffer."""
    layer = sinking(4, 3, monkeypatch)
    view = torch.full_like(layer.weight, float("nan"))
    layer.weight.gradient_sink.attach(view)
    layer.weight.grad = view
    x = torch.randn(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    first = view.clone()
    assert torch.isfinite(first).all()
    layer(x).sum().backward()
    torch.testing.assert_close(view, first + x.sum(0).expand(3, 4), rtol=0.05, atol=0.05)


def test_without_gradients_the_sink_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = sinking(4, 3, monkeypatch)
    view = torch.full_like(layer.weight, 7.0)
    layer.weight.gradient_sink.attach(view)
    with torch.no_grad():
        layer(torch.randn(2, 4))
    assert torch.equal(view, torch.full_like(view, 7.0))


@pytest.mark.parametrize(("rows", "kernel"), [(SINK_WORDS // 64, "torch"), (3, "torch")])
def test_only_large_layers_get_a_sink_on_torchs_kernel(rows: int, kernel: str) -> None:
    layer = linear_factory(kernel)("layer", 64, rows)
    large = 64 * rows >= SINK_WORDS
    assert isinstance(layer, TunedLinear) == large
    assert hasattr(layer.weight, "gradient_sink") == large


def test_an_empty_batch_is_torchs() -> None:
    layer = linear_factory("numpy")("layer", 4, 3)
    assert layer(torch.empty(0, 4)).shape == (0, 3)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    layer = linear_factory("numpy")("layer", 4, 3)
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 5.0))


def test_one_rank_of_each_node_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(Tuner, "tune", lambda _, shapes: measured.append(len(list(shapes))))

    def body(comm: Communicator) -> None:
        make = linear_factory("auto")
        model = nn.Sequential(make("0", 6, 6), make("1", 6, 2))
        tune(model, [4, 8], comm)

    run_ranks(4, body, nodes=[0, 0, 1, 1])
    assert measured == [12, 12]  # two layers, two batch sizes, three products; on two nodes


def test_nothing_is_measured_without_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "Tuner", None)
    tune(nn.Sequential(nn.Linear(2, 2)), [4], alone())
