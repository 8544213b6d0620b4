"""Sparse gradients over real MPI: every variant, the reducer against a dense sum, bad gradients,
overlap, nodes, state.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Entries, Settings
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sparse_choice import resolve
from dist_ml.data_parallel.sparse_reducer import SparseReducer

pytestmark = pytest.mark.mpi

N = 3000
WIDTHS = (40, 60, 12)


def model() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTHS[0], WIDTHS[1]),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTHS[1], WIDTHS[2]),
    )


class Job:
    """A small model, its gradients and a sparse reducer."""

    def __init__(self, world: Communicator, config: SparseConfig) -> None:
        self.world = world
        self.model = model()
        self.gradients = FlatGradients(self.model.parameters(), 1)
        self.reducer = SparseReducer(
            self.gradients, [name for name, _ in self.model.named_parameters()], world, config
        )

    def step(self, number: int, poison: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """This rank's own gradient, and what the reducer made of it."""
        random = torch.Generator().manual_seed(1000 * number + self.world.rank)
        self.reducer.begin()
        self.gradients.slots[0] = 1.0
        self.reducer.start()
        self.model(torch.randn(5, WIDTHS[0], generator=random)).square().sum().backward()
        self.gradients.complete()
        if poison == self.world.rank:
            self.gradients.flat[100] = math.inf
        own = self.gradients.flat.numpy().copy()
        self.reducer.finish()
        return own, self.gradients.flat.numpy().copy()


@pytest.mark.parametrize("name", SPARSE_ALLREDUCES)
def test_variants_over_mpi(name: str, world: Communicator) -> None:
    random = np.random.default_rng(world.rank)
    indices = np.sort(random.choice(N, 50 + world.rank, replace=False)).astype(np.int32)
    own = Entries(indices, random.standard_normal(indices.size).astype(np.float32))
    variant = SPARSE_ALLREDUCES[name].make(world, N, Settings())
    for _ in range(3):
        result = variant.reduce(own, 50)
        everything = own.dense(N).astype(np.float64)
        for entries in result.returned:
            np.subtract.at(everything, entries.indices, entries.values)
        world.allreduce(everything)
        np.testing.assert_allclose(result.to_dense(N), everything, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_reducer_at_density_one_is_dense(
    world: Communicator, overlap: int, hierarchical: bool
) -> None:
    config = SparseConfig(
        "oktopk", density=1.0, dense_below=100, overlap=overlap, hierarchical=hierarchical
    )
    job = Job(world, config)
    # With overlap a job's own gradient is overwritten while the backward pass goes on.
    own_gradients = Job(world, SparseConfig("allgather", density=1.0, dense_below=100))
    for number in range(3):
        reduced = job.step(number)[1]
        own = own_gradients.step(number)[0]
        world.allreduce(own)
        np.testing.assert_allclose(reduced, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masking", [False, True])
def test_momentum_at_density_one_is_the_optimizers_and_masking_forgets_it(
    world: Communicator, masking: bool
) -> None:
    job = Job(
        world,
        SparseConfig(
            "split_allgather", density=1.0, dense_below=100, momentum=0.9, factor_masking=masking
        ),
    )
    biases = np.concatenate([np.full(r.size, r.size < 100) for r in job.gradients.ranges])
    velocity = np.zeros(job.gradients.num_words)
    for number in range(4):
        own, reduced = job.step(number)
        world.allreduce(own)
        velocity = 0.9 * velocity + own
        np.testing.assert_allclose(
            reduced, np.where(biases | (not masking), velocity, own), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("overlap", [0, 3])
def test_sent_and_residuals_are_the_sum_of_gradients(world: Communicator, overlap: int) -> None:
    job = Job(world, SparseConfig("spardl", density=0.05, dense_below=100, overlap=overlap))
    plain = Job(world, SparseConfig("allgather", density=1.0, dense_below=100))
    total, expected = np.zeros(job.gradients.num_words), np.zeros(job.gradients.num_words)
    for number in range(4):
        total += job.step(number)[1]
        expected += plain.step(number)[1]
    for part, bucket in zip(job.reducer._buckets.parts, job.reducer._buckets.ranges, strict=True):
        residual = part.arrays["values"].astype(np.float64)
        world.allreduce(residual)
        total[bucket.slice] += residual
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-3)


def test_a_bad_gradient_on_one_rank_is_seen_by_all_and_kept_out_of_residuals(
    world: Communicator,
) -> None:
    job = Job(world, SparseConfig("oktopk", density=0.05, dense_below=100, momentum=0.9))
    job.step(0)
    job.step(1, poison=world.size - 1)
    assert math.isnan(float(job.gradients.slots[0]))
    for part in job.reducer._buckets.parts:
        assert all(np.isfinite(array).all() for array in part.arrays.values())
    assert np.isfinite(job.step(2)[1]).all()
    assert float(job.gradients.slots[0]) == world.size


@pytest.mark.parametrize("overlap", [0, 3])
def test_good_gradients_of_a_bad_step_wait_in_the_residuals(
    world: Communicator, overlap: int
) -> None:
    """What was sent + all residuals = every gradient but the bad bucket of the bad rank, also of
    buckets summed before it.
    """
    job = Job(
        world, SparseConfig("split_allgather", density=0.05, dense_below=100, overlap=overlap)
    )
    bad = world.size - 1
    poisoned = [False]
    job.model[0].weight.register_hook(
        lambda g: g * math.inf if poisoned[0] else g
    )  # the last bucket of the backward pass
    plain = Job(world, SparseConfig("allgather", density=1.0, dense_below=100))
    small = np.concatenate([np.full(r.size, r.size < 100) for r in job.gradients.ranges])
    total, expected = np.zeros(job.gradients.num_words), np.zeros(job.gradients.num_words)
    for number in range(4):
        poisoned[0] = number == 2 and world.rank == bad
        reduced = job.step(number)[1]
        own = plain.step(number)[0]
        if number == 2:
            assert math.isnan(float(job.gradients.slots[0]))
            own[job.reducer._buckets.ranges[-1].slice] *= world.rank != bad
        else:
            total += reduced
        world.allreduce(own)
        expected += own
    for part, bucket in zip(job.reducer._buckets.parts, job.reducer._buckets.ranges, strict=True):
        residual = part.arrays["values"].astype(np.float64)
        world.allreduce(residual)
        total[bucket.slice] += residual
    np.testing.assert_allclose(total[~small], expected[~small], rtol=1e-4, atol=1e-3)


def test_state_continues_bit_for_bit(world: Communicator) -> None:
    config = SparseConfig(
        "oktopk",
        density=0.05,
        dense_below=100,
        momentum=0.9,
        warmup_densities=(0.5,),
        warmup_steps=2,
    )
    first, second = Job(world, config), Job(world, config)
    for number in range(3):
        first.step(number)
    second.reducer.load_state_dict(first.reducer.state_dict())
    for state, same in zip(first.reducer.tensors(), second.reducer.tensors(), strict=True):
        same.values.copy_(state.values)
    np.testing.assert_array_equal(first.step(9)[1], second.step(9)[1])


def test_auto_chooses_the_same_on_all_ranks(world: Communicator) -> None:
    chosen = resolve(SparseConfig("auto"), 1_000_000, world)
    assert len(set(world.allgather_objects(chosen.allreduce))) == 1
    assert dataclasses.replace(chosen, allreduce="auto") == SparseConfig("auto")


def test_diagnostics(world: Communicator) -> None:
    job = Job(
        world, SparseConfig("split_allgather", density=0.1, dense_below=100, diagnose_every=1)
    )
    job.step(0)
    values = job.reducer.diagnostics()
    assert 0.09 < values["density_sent"] < 0.11
    assert 0.09 < values["density_result"] <= 0.1 * world.size + 0.01
    assert 0 <= values["xi"] < 1
