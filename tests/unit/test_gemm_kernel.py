"""Local kernels against float64, whatever the storage; OpenBLAS's copies; the peak."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_ml import compiled
from dist_ml.bench.kernel import roofline
from dist_ml.bench.plots import draw_roofline
from dist_ml.errors import ConfigError
from dist_ml.kernels import kernels, loops, openblas, peak
from dist_ml.kernels.product import local_product, sum_dtype

LOOPS = ["naive", "reordered", "blocked"]
SIZES = [(1, 1, 1), (3, 5, 7), (1, 9, 4), (9, 1, 4), (33, 17, 65)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def stored(rows: int, cols: int, how: str, dtype: torch.dtype) -> torch.Tensor:
    """A random matrix that lies row-major, column-major, inside a larger one, or with gaps in both
    dims.
    """
    if how == "T":
        return torch.randn(cols, rows, dtype=dtype).T
    if how == "inside":
        return torch.randn(rows + 2, cols + 3, dtype=dtype)[1:-1, 2:-1]
    if how == "gaps":
        return torch.randn(2 * rows, 2 * cols, dtype=dtype)[::2, ::2]
    return torch.randn(rows, cols, dtype=dtype)


@pytest.mark.parametrize("name", kernels.usable())
def test_kernels_agree_with_float64_for_every_storage(name: str) -> None:
    product = local_product(name)
    for dtype, (m, n, k) in itertools.product([torch.float32, torch.float64], SIZES):
        for how_a, how_b, how_c in itertools.product(["N", "T", "inside", "gaps"], repeat=3):
            a, b, c = (
                stored(m, k, how_a, dtype),
                stored(k, n, how_b, dtype),
                stored(m, n, how_c, dtype),
            )
            for alpha, beta in [(1.0, 0.0), (-0.5, 2.0)]:
                expected = alpha * (a.double() @ b.double()) + beta * c.double()
                product(c, a, b, alpha, beta)
                torch.testing.assert_close(c.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_agree_with_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "BLOCK_K", 4)
    monkeypatch.setattr(loops, "BLOCK_N", 3)
    for m, n, k in SIZES:
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
        expected = -0.5 * (a.double() @ b.double()) + 2 * c.double()
        local_product(name)(c, a, b, -0.5, 2.0)
        torch.testing.assert_close(c.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*kernels.usable(), *LOOPS])
def test_beta_zero_forgets_what_was_there(name: str) -> None:
    c = torch.full((3, 4), float("nan"))
    local_product(name)(c, torch.ones(3, 2), torch.ones(2, 4), 1.0, 0.0)
    assert torch.equal(c, torch.full((3, 4), 2.0))


def test_loops_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "available", lambda: False)
    loops.fastest.cache_clear()
    a, b = torch.randn(5, 6), torch.randn(6, 7)
    for name in ("naive", "reordered", "blocked"):
        c = torch.ones(5, 7)
        kernels.KERNELS[name](c, a, b, 2.0, 1.0)
        torch.testing.assert_close(c, 2 * (a @ b) + 1)
    loops.fastest.cache_clear()


def test_empty_products() -> None:
    product = local_product("torch")
    c = torch.ones(2, 3)
    product(c, torch.ones(2, 0), torch.ones(0, 3), 1.0, 0.5)
    assert torch.equal(c, torch.full((2, 3), 0.5))
    product(torch.ones(0, 3), torch.ones(0, 4), torch.ones(4, 3), 1.0, 0.0)


def test_bfloat16_is_summed_in_float32() -> None:
    a, b = torch.randn(4, 4096).bfloat16(), torch.randn(4096, 4).bfloat16()
    c = torch.zeros(4, 4)
    local_product("torch")(c, a, b, 1.0, 0.0)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-3)
    assert sum_dtype(torch.bfloat16) == torch.float32
    with pytest.raises(ConfigError, match="int64"):
        sum_dtype(torch.int64)


def test_each_kernel_set_is_a_copy_of_its_own() -> None:
    if not openblas.available():
        pytest.skip("this processor runs none of the kernel sets, or numpy brings no OpenBLAS")
    loaded = [openblas.load(name) for name in openblas.available()]
    assert len({id(copy) for copy in loaded}) == len(loaded)
    assert openblas.load("haswell").core == "Haswell"
    if "skylakex" in openblas.available():
        assert openblas.load("skylakex").core == "SkylakeX"


def test_unknown_and_unusable_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"kernel=mkl is not one of auto, naive"):
        kernels.named("mkl")
    monkeypatch.setattr(openblas, "available", lambda: ())
    with pytest.raises(ConfigError, match="can't run on this processor"):
        kernels.named("openblas-cooperlake")


def test_the_peak_is_measured_by_multiply_adds() -> None:
    values = np.full(3, 4.0)
    peak.horner(values, 0.5, 1.0, 2)
    expected = 4.0
    for _ in range(32):
        expected = expected * 0.5 + 1.0
    np.testing.assert_allclose(values, expected)
    rate = peak.flops_per_second()
    assert rate is None or rate > 1e8


def test_the_roofline_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rates = {"32x64x64:NT": {"torch": 10.0, "torch bf16": 20.0}, "64x64x64": {"torch": 40.0}}
    records = roofline(rates, 5e9, {"torch": 4, "torch bf16": 2}, {4: 50.0, 2: 200.0})
    assert [record["roof"] for record in records] == [5 * 16, 5 * 8, 50]
    file = tmp_path / "roofline.png"
    draw_roofline(records, {4: 50.0, 2: 200.0}, 5.0, str(file))
    assert file.stat().st_size > 10_000
    with pytest.raises(ConfigError, match="can't be written"):
        draw_roofline(records, {4: 50.0, 2: 200.0}, 5.0, str(tmp_path / "nowhere" / "x.png"))
