"""One flat buffer of gradients: the same numbers as autograd's own, however they get in."""

import pytest
import torch
from torch import nn

from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.errors import ConfigError
from dist_ml.nn.tuning import linear_factory


def models(width: int) -> tuple[nn.Module, nn.Module]:
    """A plain model, and its reference whose large layers write their gradients themselves."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)).double()
    make = linear_factory("torch")
    reference = nn.Sequential(make("0", width, width), nn.Tanh(), make("2", width, 3)).double()
    reference.load_state_dict(plain.state_dict())
    return plain, reference


@pytest.mark.parametrize(
    "width", [5, 400]
)  # below and above the size from which a layer has a sink
def test_sums_over_microbatches_are_autograds(width: int) -> None:
    plain, reference = models(width)
    gradients = FlatGradients(reference.parameters(), 2)
    assert any(hasattr(p, "gradient_sink") for p in reference.parameters()) == (width == 400)
    for step in range(2):
        plain.zero_grad()
        gradients.begin()
        for microbatch in range(3):
            x = torch.randn(
                4,
                width,
                generator=torch.Generator().manual_seed(10 * step + microbatch),
                dtype=torch.float64,
            )
            plain(x).square().sum().backward()
            reference(x).square().sum().backward()
        gradients.complete()
        expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.grad is not None])
        assert torch.allclose(gradients.flat, expected, rtol=1e-12)
        assert float(gradients.flat.norm()) == pytest.approx(float(expected.norm()), rel=1e-12)


def test_without_a_backward_pass_the_gradient_is_zero() -> None:
    _, reference = models(400)
    gradients = FlatGradients(
        reference.parameters(), 0, lambda n, dtype: torch.zeros(n, dtype=dtype)
    )
    reference(torch.ones(2, 400, dtype=torch.float64)).sum().backward()
    gradients.begin()
    gradients.complete()
    assert not gradients.buffer.any()


def test_autocast_goes_through_autograd_and_adds_up() -> None:
    torch.manual_seed(0)
    model = linear_factory("torch")("layer", 400, 400)
    gradients = FlatGradients(model.parameters(), 1)
    x = torch.ones(2, 400)
    for _ in range(2):  # the second step must not add to the first
        gradients.begin()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().sum().backward()
        gradients.complete()
        assert gradients.flat.unique().tolist() == [2.0]


def test_a_forward_pass_from_before_a_step_may_leave_its_gradient_to_autograd() -> None:
    """A pipeline whose steps run into each other has run it in the step before."""
    model = linear_factory("torch")("layer", 400, 400)
    gradients = FlatGradients(model.parameters(), 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.ones(2, 400))
    gradients.flat.fill_(7.0)  # by other passes of that step
    gradients.begin()
    y.float().sum().backward()
    gradients.complete()
    assert gradients.flat.unique().tolist() == [2.0]


def test_every_parameter_tells_when_it_is_ready_once_a_backward_pass() -> None:
    _, reference = models(400)
    gradients = FlatGradients(reference.parameters(), 2)
    ready: list[int] = []
    gradients.on_final(ready.append)
    for _ in range(2):
        ready.clear()
        gradients.begin()
        reference(torch.ones(2, 400, dtype=torch.float64)).sum().backward()
        assert sorted(ready) == [0, 1, 2, 3]
        assert ready.index(2) < ready.index(0)  # the last layer's gradients are ready first


def test_parameters_of_several_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="one dtype"):
        FlatGradients([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())], 1)
