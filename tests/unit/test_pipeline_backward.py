"""The backward pass in two parts is the whole one: the same bits, each product once."""

import itertools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import nn

from dist_ml.nn.backward_part import backward_part, current
from dist_ml.nn.linear import TunedLinear
from dist_ml.nn.tuning import linear_factory
from dist_ml.pipeline_parallel.backward import Enter, SplitBackward

F64 = torch.float64
Outputs = Callable[..., tuple[torch.Tensor, ...]]


class Case(NamedTuple):
    """A stage: its parameters are those of `modules`."""

    modules: list[nn.Module]
    run: Outputs
    num_inputs: int = 1


def linear(*sizes: int) -> list[nn.Module]:
    torch.manual_seed(4)
    return [nn.Linear(a, b, dtype=F64) for a, b in itertools.pairwise(sizes)]


def chain() -> Case:
    a, b = linear(4, 6, 4)
    return Case([a, b], lambda x: (b(torch.tanh_(a(torch.relu_(x)))),))


def residual() -> Case:
    a, b = linear(4, 6, 4)
    return Case([a, b], lambda x: (x + b(torch.relu(a(x))),))


def layer_norm() -> Case:
    norm, (a, b) = nn.LayerNorm(4, dtype=F64), linear(4, 6, 4)
    return Case([norm, a, b], lambda x: (x + b(torch.nn.functional.gelu(a(norm(x)))),))


def group_norm() -> Case:
    """Of images with channels last, whose gradients torch's kernel can't make one without the
    other.
    """
    torch.manual_seed(4)
    norm, a = nn.GroupNorm(2, 4, dtype=F64), nn.Conv2d(4, 4, 3, padding=1, dtype=F64)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = x[:, :, None, None] * torch.linspace(-1, 1, 15, dtype=F64).reshape(3, 5)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images + a(torch.relu_(norm(images))),)

    return Case([norm, a], run)


def functional_weight() -> Case:
    """A parameter that passes through nodes of its own before it meets the input."""
    (a,) = linear(4, 4)
    return Case([a], lambda x: (x @ torch.tanh(a.weight * 2).T + a.bias.exp(),))


def several_outputs() -> Case:
    a, b = linear(4, 6, 3)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = torch.tanh(a(x))
        return hidden, b(hidden)

    return Case([a, b], run)


def several_inputs() -> Case:
    a, b = linear(4, 6, 4)
    return Case([a, b], lambda x, y: (b(torch.tanh(a(x))) * y,), num_inputs=2)


def an_output_apart() -> Case:
    """One output comes of parameters alone."""
    a, b = linear(4, 6, 4)
    return Case([a, b], lambda x: (torch.tanh(a(x)), b(torch.ones(6, dtype=F64))))


def no_inputs() -> Case:
    a, b = linear(4, 6, 4)
    x = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4)
    return Case([a, b], lambda: (b(torch.tanh(a(x))),), num_inputs=0)


def tied() -> Case:
    """Both parts of one parameter in one stage: it falls back to one part."""
    (a,) = linear(4, 4)
    return Case([a], lambda x: (a(torch.tanh(a(x))),))


def gradient_sinks() -> Case:
    """Layers whose backward pass is their own."""
    torch.manual_seed(4)
    make = linear_factory("numpy")
    a, b = (make("", *sizes).to(F64) for sizes in ((4, 5), (5, 4)))
    assert isinstance(a, TunedLinear)
    return Case([a, b], lambda x: (b(torch.tanh_(a(x))),))


CASES = [chain, residual, layer_norm, group_norm, functional_weight, several_outputs]
CASES += [several_inputs, an_output_apart, no_inputs, gradient_sinks, tied]


def inputs_of(case: Case) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, 4, dtype=F64, generator=generator).requires_grad_()
        for _ in range(case.num_inputs)
    ]


def gradients_of(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor | None]:
    return [torch.cos(output.detach()) for output in outputs]


def forward(case: Case, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return case.run(*(Enter.apply(tensor) for tensor in inputs))  # type: ignore[no-untyped-call]


def parameters(case: Case) -> list[nn.Parameter]:
    return [parameter for module in case.modules for parameter in module.parameters()]


def taken(tensors: list[torch.Tensor] | list[nn.Parameter]) -> list[torch.Tensor | None]:
    return [None if tensor.grad is None else tensor.grad.clone() for tensor in tensors]


def assert_bits(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_both_parts_are_the_whole_backward_pass(make: Callable[[], Case]) -> None:
    whole, split = make(), make()
    expected_inputs, inputs = inputs_of(whole), inputs_of(split)
    for _ in range(2):  # gradients add up
        outputs = forward(whole, expected_inputs)
        torch.autograd.backward(outputs, gradients_of(outputs))
        outputs = forward(split, inputs)
        parts = SplitBackward(outputs, gradients_of(outputs), inputs)
        before = taken(parameters(split))
        parts.input_part()
        assert_bits(taken(inputs), taken(expected_inputs))
        if make is not tied:
            assert_bits(taken(parameters(split)), before)
        parts.weight_part()
        assert_bits(taken(inputs), taken(expected_inputs))
        assert_bits(taken(parameters(split)), taken(parameters(whole)))
    assert all(gradient is not None and gradient.any() for gradient in taken(parameters(split)))


def test_a_parameter_that_is_used_twice_has_its_gradient_in_the_input_part() -> None:
    case = tied()
    inputs = inputs_of(case)
    outputs = forward(case, inputs)
    parts = SplitBackward(outputs, gradients_of(outputs), inputs)
    parts.input_part()
    after = taken(parameters(case))
    assert all(gradient is not None for gradient in after)
    parts.weight_part()
    assert_bits(taken(parameters(case)), after)


class Counting(torch.autograd.Function):
    """A product that notes which of its gradients it computes."""

    ran: ClassVar[list[str]] = []

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        part = current()
        dx = dw = None
        if part != "weight" and ctx.needs_input_grad[0]:
            dx = gradient @ weight
            Counting.ran.append("input")
        if part != "input" and ctx.needs_input_grad[1]:
            dw = gradient.T @ x
            Counting.ran.append("weight")
        return dx, dw


def test_each_product_is_computed_once_in_its_part() -> None:
    weights = [nn.Parameter(torch.eye(4, dtype=F64) + i) for i in range(3)]

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for weight in weights:
            x = Counting.apply(torch.tanh(x), weight)  # type: ignore[no-untyped-call]
        return (x,)

    (x,) = inputs = inputs_of(Case([], run))
    outputs = run(x)
    parts = SplitBackward(outputs, gradients_of(outputs), inputs)
    Counting.ran = []
    parts.input_part()
    assert Counting.ran == ["input"] * 3
    parts.weight_part()
    assert Counting.ran == ["input"] * 3 + ["weight"] * 3
    assert all(weight.grad is not None for weight in weights)


def test_the_part_is_of_the_thread_and_ends_also_with_an_error() -> None:
    assert current() == "whole"
    with backward_part("weight"):
        with pytest.raises(RuntimeError, match="input"), backward_part("input"):
            raise RuntimeError(current())
        assert current() == "weight"
    assert current() == "whole"


def test_what_enters_may_be_overwritten_and_shares_its_memory() -> None:
    received = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    entered = Enter.apply(received)  # type: ignore[no-untyped-call]
    torch.relu_(entered).square().sum().backward()
    assert received.tolist() == [[0.0, 2.0]]
    assert received.grad is not None
    assert received.grad.tolist() == [[0.0, 4.0]]
