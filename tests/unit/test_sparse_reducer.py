"""The sparse reducer in a world of threads: sums, momentum, and what a bad step leaves behind."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.density import DensityWarmup, density_groups
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.small_tensors import SmallTensors
from dist_ml.data_parallel.sparse_gradients import SparseGradients
from dist_ml.data_parallel.sparse_reducer import SparseReducer
from dist_ml.errors import ConfigError
from dist_ml.partition import Range

SHAPES = ((30, 20), (20,), (7, 30), (7,))
NAMES = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
SMALL = [size < 50 for size in (600, 20, 210, 7) for _ in range(size)]


class Job:
    """A reducer whose gradients are written by hand."""

    def __init__(self, comm: Communicator, check_first: bool = False, **changes: Any) -> None:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        self.comm = comm
        self.gradients = FlatGradients(parameters, 2)
        self.config = SparseConfig(**{"allreduce": "oktopk", "dense_below": 50, **changes})
        self.reducer = SparseReducer(
            self.gradients, NAMES, comm, self.config, seed=3, check_first=check_first
        )

    def own(self, step: int) -> np.ndarray:
        random = np.random.default_rng([step, self.comm.rank])
        return random.standard_normal(self.gradients.num_words).astype(np.float32)

    def step(self, step: int, own: np.ndarray | None = None, loss: float = 1.0) -> SparseGradients:
        self.reducer.begin()
        self.reducer.start()
        self.gradients.flat.numpy()[...] = self.own(step) if own is None else own
        self.gradients.slots[0] = loss
        return self.reducer.finish()

    @property
    def result(self) -> np.ndarray:
        return self.gradients.flat.numpy().copy()


def state_of(reducer: SparseReducer) -> dict[str, Any]:
    tensors = [(state.where, state.values.clone()) for state in reducer.tensors()]
    return {**reducer.state_dict(), "tensors": tensors}


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(np.array_equal(one, other))


POISONS = {"nan": math.nan, "inf": -math.inf, "huge": 3e30, "norm_overflows": 2e19}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(("place", "ranks"), [(3, 1), (3, 3), (610, 2), (-1, 2)])
def test_a_poisoned_gradient_costs_one_step_and_leaves_no_trace(
    poison: str, momentum: float, place: int, ranks: int
) -> None:
    """In the weights or in a small tensor, on one rank: the run goes on as if the step had never
    been.
    """

    def body(comm: Communicator) -> tuple[bool, bool, list[bool]]:
        job = Job(comm, check_first=True, density=0.1, momentum=momentum, threshold_steps=3)
        other = Job(comm, check_first=True, density=0.1, momentum=momentum, threshold_steps=3)
        for step in range(4):
            job.step(step)
            other.step(step)
        before = state_of(job.reducer)
        own = job.own(4)
        if comm.rank == comm.size - 1:
            own[place] = POISONS[poison]
        bad = job.step(4, own)
        bad.roll_back()
        untouched = same_state(before, state_of(job.reducer))
        equal = []
        for step in range(5, 9):
            good = job.step(step)
            assert math.isfinite(good.slots[0])
            assert math.isfinite(good.norm())
            other.step(step)
            equal.append(np.array_equal(job.result, other.result))
        return math.isnan(bad.slots[0]), untouched, equal

    for seen, untouched, equal in run_ranks(ranks, body):
        assert seen
        assert untouched
        assert all(equal)


def test_a_loss_that_is_not_finite_leaves_no_trace_either() -> None:
    def body(comm: Communicator) -> bool:
        job = Job(comm, check_first=True, density=0.1)
        job.step(0)
        before = state_of(job.reducer)
        bad = job.step(1, loss=math.inf if comm.rank == 0 else 1.0)
        bad.roll_back()
        return math.isnan(bad.slots[0]) and same_state(before, state_of(job.reducer))

    assert all(run_ranks(3, body))


@pytest.mark.parametrize("check_first", [False, True])
@pytest.mark.parametrize("values", ["plain", "bf16", "int4"])
def test_roll_back_after_the_exchange_returns_momentum_and_what_was_selected(
    values: str, check_first: bool
) -> None:
    """The step's sums were fine, but are not used: nothing is lost, the gradient waits."""

    def body(comm: Communicator) -> np.ndarray:
        job = Job(comm, check_first, density=0.1, momentum=0.9, values=values)
        job.step(0)
        part = job.reducer._buckets.parts[0]
        velocity = part.arrays["velocity"].copy()
        residual = part.arrays["values"].copy()
        small, steps = job.reducer._small.velocity.copy(), job.reducer.state_dict()["steps"]
        own = job.own(1)
        job.step(1, own).roll_back()
        state = job.reducer.state_dict()
        assert state["steps"] == steps
        np.testing.assert_array_equal(job.reducer._small.velocity, small)
        sparse = ~np.array(SMALL)
        expected = np.float32(0.9) * velocity + own
        found = part.arrays
        np.testing.assert_allclose(found["velocity"][sparse], expected[sparse], rtol=1e-6)
        np.testing.assert_allclose(
            found["values"][sparse], (residual + expected)[sparse], rtol=1e-4, atol=1e-5
        )
        return small

    run_ranks(2, body)


@pytest.mark.parametrize("allreduce", ["allgather", "dense", "dense_split_allgather", "spardl"])
def test_norm_and_scale_are_those_of_the_whole_sum(allreduce: str) -> None:
    def body(comm: Communicator) -> None:
        job = Job(comm, allreduce=allreduce, density=0.2, momentum=0.5)
        for step in range(2):
            reduced = job.step(step)
            norm = float(np.linalg.norm(job.result.astype(np.float64)))
            assert reduced.norm() == pytest.approx(norm, rel=1e-5)
            before = job.result
            reduced.scale(0.25)
            np.testing.assert_allclose(job.result, before / 4)
            assert reduced.norm() == pytest.approx(norm / 4, rel=1e-5)

    run_ranks(3, body)


@pytest.mark.parametrize("size", range(1, 6))
def test_sent_and_residuals_are_the_sum_of_gradients(size: int) -> None:
    def body(comm: Communicator) -> None:
        job = Job(comm, allreduce="spardl", density=0.05, values="bf16")
        total, expected = np.zeros(job.gradients.num_words), np.zeros(job.gradients.num_words)
        for step in range(5):
            own = job.own(step).astype(np.float64)
            comm.allreduce(own)
            expected += own
            job.step(step)
            total += job.result
        arrays = job.reducer._buckets.parts[0].arrays
        residual = arrays["values"].astype(np.float64)
        comm.allreduce(residual)
        np.testing.assert_allclose(total + residual, expected, rtol=1e-4, atol=1e-3)

    run_ranks(size, body)


NODES = {"1": [0], "2": [0, 0], "1+1+1": [0, 1, 2], "2+2": [0, 0, 1, 1], "2x3": [0, 1, 0, 1, 0, 1]}


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("overlap", [0, 3])
def test_at_density_one_nodes_that_sum_first_sum_everything(nodes: str, overlap: int) -> None:
    if overlap:  # buckets on a thread, over a communicator of their own, without nodes
        changes: dict[str, Any] = {"allreduce": "split_allgather", "overlap": overlap}
    else:
        changes = {"allreduce": "oktopk", "hierarchical": True}

    def body(comm: Communicator) -> np.ndarray:
        job = Job(comm, density=1.0, **changes)
        for step in range(2):
            expected = job.own(step).astype(np.float64)
            comm.allreduce(expected)
            reduced = job.step(step, loss=comm.rank + 1.0)
            np.testing.assert_allclose(job.result, expected, rtol=1e-5, atol=1e-5)
            assert reduced.slots[0] == sum(range(1, comm.size + 1))
            assert reduced.norm() == pytest.approx(float(np.linalg.norm(expected)), rel=1e-5)
        job.reducer.close()
        return job.result

    found = run_ranks(len(NODES[nodes]), body, NODES[nodes])
    assert all(np.array_equal(result, found[0]) for result in found)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_node_remembers_as_one_and_nothing_is_lost(nodes: str, momentum: float) -> None:
    """Each rank of a node keeps the residual of its shard: together with what was sent, over all
    nodes, they are the sum of all gradients, or of all velocities.
    """

    def body(comm: Communicator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        job = Job(
            comm, allreduce="split_allgather", density=0.05, hierarchical=True, dense_below=0,
            momentum=momentum, factor_masking=False,
        )  # fmt: skip
        words = job.gradients.num_words
        total, expected, velocity = np.zeros(words), np.zeros(words), np.zeros(words)
        for step in range(5):
            velocity = momentum * velocity + job.own(step)
            expected += velocity
            job.step(step)
            total += job.result
        arrays = job.reducer._buckets.parts[0].arrays
        return total, expected, arrays["values"]

    layout = NODES[nodes]
    found = run_ranks(len(layout), body, layout)
    residual = sum(
        np.concatenate([found[rank][2] for rank, of in enumerate(layout) if of == node])
        for node in sorted(set(layout))
    )
    expected = sum(gradients for _, gradients, _ in found)
    np.testing.assert_allclose(found[0][0] + residual, expected, rtol=1e-4, atol=1e-3)
    assert np.count_nonzero(residual) > 0


def test_between_nodes_go_the_shares_of_ranks_and_inside_them_the_whole_gradient() -> None:
    def body(comm: Communicator) -> tuple[int, int]:
        job = Job(comm, allreduce="allgather", density=0.1, hierarchical=True, dense_below=0)
        before = comm.traffic.snapshot()
        job.step(0)
        moved: dict[str, int] = {}
        for (axis, _), tally in comm.traffic.since(before).items():
            moved[axis] = moved.get(axis, 0) + tally.words_sent
        return moved["data in node"], moved["data between nodes"]

    inside, between = zip(*run_ranks(4, body, [0, 0, 1, 1]), strict=True)
    n = sum(math.prod(shape) for shape in SHAPES)
    assert sum(inside) == 2 * 2 * n  # a reduce-scatter and an allgather of n (L-1)/L a rank, twice
    assert 0 < sum(between) <= 4 * (2 * 0.1 * n / 2 + 10)


def test_each_rank_is_clipped_to_its_share_of_the_norm() -> None:
    def body(comm: Communicator) -> float:
        job = Job(comm, allreduce="allgather", density=1.0, dense_below=0, clip_norm=0.5)
        return job.step(0).norm()

    assert run_ranks(1, body) == [pytest.approx(0.5, rel=1e-5)]
    assert max(run_ranks(4, body)) <= 4 * 0.5 / math.sqrt(4) * 1.001


@pytest.mark.parametrize("usable", [True, False])
def test_small_tensors_have_momentum_that_a_bad_step_does_not_move(usable: bool) -> None:
    def body(comm: Communicator) -> None:
        flat, slots = np.arange(6, dtype=np.float32), np.ones(1, np.float32)
        places = [Range(1, 3), Range(5, 6)]
        small = SmallTensors(flat, places, slots, comm, momentum=0.5)
        small.set_aside(Range(0, 6))
        small.reduce(usable=True)
        np.testing.assert_array_equal(flat, [0, 2, 4, 3, 4, 10])
        assert slots[0] == 2
        small.set_aside(Range(4, 6))  # the first place keeps what was summed last
        small.reduce(usable)
        velocity = [2 * 2 + 1, 2 * 4 + 2, 2 * 10 + 5] if usable else [2, 4, 10]
        np.testing.assert_array_equal(small.velocity, velocity)
        small.roll_back()
        small.roll_back()
        np.testing.assert_array_equal(small.velocity, [2, 4, 10])

    run_ranks(2, body)


def test_groups_take_the_longest_prefix_and_leave_small_tensors_dense() -> None:
    ranges = [Range(0, 600), Range(600, 620), Range(620, 830), Range(830, 837)]
    groups = density_groups(NAMES, ranges, {"layers": 0.1, "layers.1": 0.5}, NAMES[1::2])
    assert groups.dense == (Range(600, 620), Range(830, 837))
    assert groups.sparse == ((0.1, (Range(0, 600),)), (0.5, (Range(620, 830),)))
    assert groups.num_dense == 27
    inside = groups.within(Range(500, 700))
    assert inside.dense == ()
    assert inside.sparse == ((0.1, (Range(0, 100),)), (0.5, (Range(120, 200),)))


def test_a_density_of_a_layer_that_is_not_there_is_refused() -> None:
    ranges = [Range(0, 600), Range(600, 620), Range(620, 830), Range(830, 837)]
    with pytest.raises(ConfigError, match=r"densities\.layers\.7 fits no parameter.*layers\.0"):
        density_groups(NAMES, ranges, {"layers.7": 0.1}, ())


def test_warm_up_is_followed_by_the_density_and_every_change_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = SparseConfig("oktopk", density=0.01, warmup_densities=(0.5, 0.1), warmup_steps=2)
    warmup = DensityWarmup(config)
    with caplog.at_level("INFO"):
        assert [warmup.at(step) for step in range(6)] == [0.5, 0.5, 0.1, 0.1, 0.01, 0.01]
    assert [record.getMessage() for record in caplog.records] == [
        "step 0: density 0.5 (warm-up)",
        "step 2: density 0.1 (warm-up)",
        "step 4: density 0.01",
    ]


def test_diagnostics_tell_densities_and_residual() -> None:
    def body(comm: Communicator) -> dict[str, float]:
        job = Job(comm, allreduce="split_allgather", density=0.1, diagnose_every=1)
        job.step(0)
        return job.reducer.diagnostics()

    for values in run_ranks(2, body):
        assert values["density_sent"] == pytest.approx(0.1, abs=0.01)
        assert 0.1 <= values["density_result"] <= 0.2
        assert values["residual_over_gradient"] > 0
        assert 0 <= values["xi"] < 1
        assert {"seconds_select", "seconds_exchange", "seconds_apply"} <= values.keys()
