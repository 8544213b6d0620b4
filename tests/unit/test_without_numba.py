"""`DIST_ML_NUMBA=0` changes how fast sums and selections are made, and not a bit of them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from thread_world import run_ranks

from dist_ml import compiled
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import index_code, merge
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel import selection_kernels
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.sparse_reducer import SparseReducer

# What is looked up once a process.
CHOSEN_ONCE = (selection_kernels.kernels, merge._merge_function, index_code._gaps)
Choose = Callable[[bool], None]

pytestmark = pytest.mark.skipif(not compiled.available(), reason="there is only one way here")


@pytest.fixture
def numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[Choose]:
    """Call it with whether numba is there from now on."""

    def choose(available: bool) -> None:
        monkeypatch.setattr(compiled, "available", lambda: available)
        for function in CHOSEN_ONCE:
            function.cache_clear()

    yield choose
    monkeypatch.undo()
    for function in CHOSEN_ONCE:
        function.cache_clear()


def test_the_variable_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("0", False), ("1", True), ("", True)):
        monkeypatch.setenv("DIST_ML_NUMBA", value)
        assert compiled.available.__wrapped__() is expected


EXCHANGES: dict[str, dict[str, Any]] = {
    "oktopk": {"allreduce": "oktopk", "momentum": 0.5},
    "spardl bf16": {"allreduce": "spardl", "values": "bf16", "selection": "threshold"},
    "gtopk": {"allreduce": "gtopk", "values": "fp32", "selection": "sampled"},
    "doubling int4": {
        "allreduce": "recursive_doubling", "values": "int4", "selection": "gaussian",
    },
    "split": {"allreduce": "split_allgather", "density": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("name", EXCHANGES)
def test_sparse_sums_and_what_they_leave_are_the_same(name: str, numba: Choose) -> None:
    def body(comm: Communicator) -> tuple[list[np.ndarray], np.ndarray]:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((40, 30), (30,))]
        gradients = FlatGradients(parameters, 1)
        config = SparseConfig(**{"density": 0.05, "dense_below": 50, **EXCHANGES[name]})
        reducer = SparseReducer(gradients, ["weight", "bias"], comm, config, seed=3)
        results = []
        for step in range(4):
            reducer.begin()
            reducer.start()
            random = np.random.default_rng([step, comm.rank])
            gradients.flat.numpy()[...] = random.standard_normal(gradients.num_words)
            reducer.finish()
            results.append(gradients.flat.numpy().copy())
        return results, reducer._buckets.parts[0].arrays["values"]

    found = []
    for available in (True, False):
        numba(available)
        found.append(run_ranks(3, body))
    for (results, residual), (plain, plain_residual) in zip(*found, strict=True):
        np.testing.assert_array_equal(results, plain)
        np.testing.assert_array_equal(residual, plain_residual)
        assert residual.any()


@pytest.mark.parametrize(
    ("name", "nodes"),
    [("shared_memory", [0, 0, 0]), ("hierarchical", [0, 0, 0, 1, 1])],
    ids=["shared_memory", "hierarchical"],
)
def test_reductions_in_shared_memory_are_the_same(
    name: str, nodes: list[int], numba: Choose
) -> None:
    def body(comm: Communicator) -> list[bytes]:
        reduce = family.make(name, comm)
        found = []
        for n in (1, 63, 1000):
            for dtype in (torch.float32, torch.float64):
                x = reduce.allocate(n, dtype)
                for repeat in range(2):
                    random = np.random.default_rng([comm.rank, repeat])
                    x.copy_(torch.from_numpy(random.standard_normal(n)))
                    reduce(x, "mean")
                    found.append(x.numpy().tobytes())
        return found

    numba(True)
    fast = run_ranks(len(nodes), body, nodes)
    numba(False)
    assert run_ranks(len(nodes), body, nodes) == fast
