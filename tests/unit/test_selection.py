"""Selections against sorting, the compiled passes against their plain reference, and the residual's
invariants.
"""

import numpy as np
import pytest

from dist_ml import compiled
from dist_ml.comm.sparse.entries import Entries, largest_mask
from dist_ml.data_parallel.residual import MomentumResidual, Residual
from dist_ml.data_parallel.selection import SELECTIONS, count_of
from dist_ml.data_parallel.selection_kernels import plain_kernels
from dist_ml.errors import NonFiniteError
from dist_ml.partition import Range

N = 5003  # not a multiple of a block


def gradients(steps: int, seed: int = 0, dtype: str = "float32", n: int = N) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    scales = np.exp(random.standard_normal(n))
    return [(random.standard_normal(n) * scales).astype(dtype) for _ in range(steps)]


def new(name: str, period: int = 4):
    return SELECTIONS[name](period, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_selected_plus_residual_is_the_accumulated_gradient_to_the_last_bit(
    name: str, dtype: str
) -> None:
    selection, residual = new(name), Residual(np.zeros(N, dtype))
    expected = np.zeros(N, dtype)
    for gradient in gradients(12, dtype=dtype):
        expected += gradient
        entries = selection.select(residual, gradient, 50)
        np.testing.assert_array_equal(residual.values + entries.dense(N), expected)
        assert not residual.values[entries.indices].any()
        assert (np.diff(entries.indices) > 0).all()
        expected[entries.indices] = 0


@pytest.mark.parametrize("k", [1, 7, 50, 500, 4000, N])
def test_exact_takes_the_k_largest(k: int) -> None:
    selection, residual = new("exact"), Residual(np.zeros(N, "float32"))
    total = np.zeros(N, np.float32)
    for gradient in gradients(6):
        total += gradient
        entries = selection.select(residual, gradient, k)
        np.testing.assert_array_equal(
            entries.indices, np.flatnonzero(largest_mask(np.abs(total), k))
        )
        total[entries.indices] = 0


@pytest.mark.parametrize("name", ["threshold", "gaussian", "sampled"])
def test_counts_stay_near_k(name: str) -> None:
    selection, residual = new(name, period=16), Residual(np.zeros(N, "float32"))
    counts = [selection.select(residual, gradient, 100).size for gradient in gradients(60)]
    assert all(60 <= count <= 134 for count in counts[5:]), counts


def test_a_reused_threshold_stays_bounded_when_gradients_jump() -> None:
    selection, residual = new("threshold", period=1000), Residual(np.zeros(N, "float32"))
    for step, gradient in enumerate(gradients(40)):
        count = selection.select(residual, gradient * np.float32(10 ** (step % 5)), 90).size
        assert 60 <= count <= 120


@pytest.mark.parametrize("name", SELECTIONS)
def test_zeros_are_never_sent(name: str) -> None:
    selection, residual = new(name), Residual(np.zeros(N, "float32"))
    assert selection.select(residual, np.zeros(N, np.float32), 50).size == 0
    gradient = np.zeros(N, np.float32)
    gradient[[3, 4000]] = 1.0
    assert selection.select(residual, gradient, 50).indices.tolist() == [3, 4000]


def test_ties_go_to_the_lowest_indices_and_none_is_lost() -> None:
    selection, residual = new("exact"), Residual(np.zeros(N, "float32"))
    entries = selection.select(residual, np.ones(N, np.float32), 50)
    assert entries.indices.tolist() == list(range(50))
    assert np.count_nonzero(residual.values) == N - 50


@pytest.mark.parametrize("name", SELECTIONS)
def test_density_one_sends_everything(name: str) -> None:
    selection, residual = new(name), Residual(np.zeros(N, "float32"))
    for gradient in gradients(2):
        np.testing.assert_array_equal(selection.select(residual, gradient, N).dense(N), gradient)
        assert not residual.values.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_gradient_that_is_not_finite_leaves_the_residual_clean(name: str, bad: float) -> None:
    selection = new(name)
    for residual in (
        Residual(np.zeros(N, "float32")),
        MomentumResidual(np.zeros(N, "float32"), 0.9, np.zeros(N, "float32")),
    ):
        for gradient in gradients(3):
            selection.select(residual, gradient, 50)
        before = residual.values.copy()
        for positions in (0, 17, N - 1, slice(0, 3000), slice(None)):
            gradient = gradients(1, seed=9)[0]
            gradient[positions] = bad
            with pytest.raises(NonFiniteError):
                selection.select(residual, gradient, 50)
            np.testing.assert_allclose(residual.values, before, atol=1e-4)


def test_a_sum_that_overflows_is_not_finite_either() -> None:
    residual = Residual(np.full(N, 3e38, np.float32))
    with pytest.raises(NonFiniteError):
        residual.accumulate(np.full(N, 3e38, np.float32), 1.0, 10)
    assert (residual.values == np.float32(3e38)).all()


def test_ranges_leave_the_rest_alone() -> None:
    ranges = [Range(10, 700), Range(1000, 1003), Range(3000, N)]
    residual = Residual(np.zeros(N, "float32"), ranges)
    inside = np.zeros(N, bool)
    for part in ranges:
        inside[part.slice] = True
    gradient = gradients(1)[0]
    entries = new("exact").select(residual, gradient, 60)
    assert (
        entries.indices.tolist()
        == np.flatnonzero(largest_mask(np.abs(np.where(inside, gradient, 0)), 60)).tolist()
    )
    assert not residual.values[~inside].any()
    sampled = residual.sample_magnitudes(np.arange(residual.length), gradient)
    assert sampled.size == inside.sum()


def test_momentum_correction_is_the_momentum_sum() -> None:
    """With everything sent in the last step, the sum of all that was sent is the sum of the
    velocities (no masking before).
    """
    residual = MomentumResidual(np.zeros(N, "float64"), 0.9, np.zeros(N, "float64"))
    velocity, total = np.zeros(N), np.zeros(N)
    for gradient in gradients(5, dtype="float64"):
        velocity = 0.9 * velocity + gradient
        total += velocity
        taken = residual.accumulate(gradient, 50.0, N)
        total[taken.entries.indices] = 0
        np.testing.assert_allclose(residual.values, total, atol=1e-12)
    residual.mask_momentum(np.array([1, 2], np.int32))
    assert not residual.velocity[[1, 2]].any()


@pytest.mark.skipif(not compiled.available(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_compiled_kernels_agree_with_their_plain_reference(n: int, dtype: str) -> None:
    from dist_ml.data_parallel.selection_kernels import compiled_kernels

    kind = np.dtype(dtype).type
    gradient, start, velocity = (gradients(1, seed, dtype, n)[0] for seed in range(3))
    results = []
    for module in (compiled_kernels, plain_kernels):
        residual, speed = start.copy(), velocity.copy()
        indices, values = np.zeros(3 * n + 64, np.int32), np.zeros(3 * n + 64, dtype)
        count, full, _ = module.accumulate(
            gradient, kind(0.5), residual, kind(2), indices, values, 7
        )
        rest = indices[count:], values[count:]
        again, _, _ = module.accumulate_momentum(
            gradient, kind(0.5), speed, kind(0.9), residual, kind(1), *rest, 0
        )
        swept, _, _ = module.sweep(residual, kind(0.5), rest[0][again:], rest[1][again:], 0)
        module.add_at(residual, np.zeros(min(n, 2), np.int32), np.ones(min(n, 2), dtype))
        results.append((count, again, swept, full, residual, speed, indices, values))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_restore_adds_repeated_indices() -> None:
    residual = Residual(np.zeros(4, "float32"))
    residual.restore(Entries(np.array([1, 1, 3], np.int32), np.array([1, 2, 4], np.float32)))
    assert residual.values.tolist() == [0, 3, 0, 4]


def test_counts_of_densities() -> None:
    assert [count_of(0.01, 1000), count_of(1e-9, 1000), count_of(1.0, 1000), count_of(0.5, 0)] == [
        10,
        1,
        1000,
        0,
    ]


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_never_enters_a_residual(kernel: str, bad: float) -> None:
    if kernel == "compiled" and not compiled.available():
        pytest.skip("numba is not installed")
    if kernel == "compiled":
        from dist_ml.data_parallel.selection_kernels import compiled_kernels as module
    else:
        module = plain_kernels
    residual = np.array([1, 3e38, 5], np.float32)
    module.add_at(
        residual, np.array([0, 1, 1, 2, 0], np.int32), np.array([1, bad, -1e38, 2, 4], np.float32)
    )
    expected = np.float32(3e38) + np.float32(-1e38)
    np.testing.assert_array_equal(residual, np.array([6, expected, 7], np.float32))


def test_momentum_that_was_masked_comes_back() -> None:
    velocity = np.arange(6, dtype=np.float32)
    residual = MomentumResidual(np.zeros(6, "float32"), 0.9, velocity)
    residual.unmask_momentum()  # nothing was masked
    residual.mask_momentum(np.array([1, 4], np.int32))
    assert velocity.tolist() == [0, 0, 2, 3, 0, 5]
    residual.unmask_momentum()
    residual.unmask_momentum()
    assert velocity.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_goes_on_from_its_state(name: str) -> None:
    first, residual = new(name), Residual(np.zeros(N, "float32"))
    steps = gradients(8)
    for gradient in steps[:5]:
        first.select(residual, gradient, 60)
    second, copy = new(name), Residual(residual.values.copy())
    second.load_state_dict(first.state_dict())
    for gradient in steps[5:]:
        one, other = (
            first.select(residual, gradient, 60),
            second.select(copy, gradient, 60),
        )
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_undo_is_as_before_up_to_rounding(momentum: float | None, scale: float) -> None:
    before, speed, gradient = gradients(3, seed=5)
    values, velocity = before.copy(), speed.copy()
    residual = (
        Residual(values) if momentum is None else MomentumResidual(values, momentum, velocity)
    )
    taken = residual.accumulate(gradient, 2.0, N, scale)
    assert taken.entries.size
    residual.undo(gradient, [taken.entries], scale)
    np.testing.assert_allclose(values, before, atol=1e-5)
    np.testing.assert_allclose(velocity, speed, atol=1e-5)
