"""The bound that results are held to: it accepts what rounding makes, and nothing else."""

import math

import pytest
import torch

from dist_ml.gemm.reference import error_over_bound

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a, b, c = torch.rand(9, 40), torch.rand(40, 7), torch.rand(9, 7)
    return a.to(dtype), b.to(dtype), c.to(dtype)


def exact(dtype: torch.dtype, alpha: float, beta: float) -> torch.Tensor:
    a, b, c = (x.double() for x in operands(dtype))
    return (alpha * (a @ b) + beta * c).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (-2.0, 0.5), (0.0, 1.0)])
def test_a_rounded_result_is_within_the_bound(
    dtype: torch.dtype, alpha: float, beta: float
) -> None:
    a, b, c = operands(dtype)
    assert error_over_bound(exact(dtype, alpha, beta), a, b, c, alpha, beta) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", [0, 8])
def test_one_wrong_element_is_not(dtype: torch.dtype, row: int) -> None:
    a, b, c = operands(dtype)
    wrong = exact(dtype, 1.0, 0.0)
    wrong[row, 3] *= 1.02
    assert error_over_bound(wrong, a, b, c) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_left_out_term_is_not(dtype: torch.dtype) -> None:
    a, b, c = operands(dtype)
    short = (a.double()[:, 1:] @ b.double()[1:]).to(dtype)
    assert error_over_bound(short, a, b) > 1
    assert error_over_bound(exact(dtype, 1.0, 0.0), a, b, c, 1.0, 1.0) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_wrong(value: float) -> None:
    a, b, _ = operands(torch.float32)
    wrong = exact(torch.float32, 1.0, 0.0)
    wrong[2, 2] = value
    assert error_over_bound(wrong, a, b) == math.inf


def test_results_that_underflow_are_rounding_not_errors() -> None:
    a, b, _ = operands(torch.float32)
    alpha = 1e-44
    tiny = (alpha * (a.double() @ b.double())).float()
    assert error_over_bound(tiny, a, b, None, alpha) <= 1
    assert error_over_bound(tiny + 1e-35, a, b, None, alpha) > 1


def test_empty_results_have_no_error() -> None:
    assert error_over_bound(torch.empty(0, 3), torch.empty(0, 2), torch.empty(2, 3)) == 0.0
    assert error_over_bound(torch.zeros(2, 3), torch.empty(2, 0), torch.empty(0, 3)) == 0.0
