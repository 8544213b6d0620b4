"""From a configuration to what the data axis exchanges: every member reads the keys that it says it
reads, what its ranks lack is told, and the gradients it makes are sums over all ranks.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from thread_world import ThreadTransport, run_ranks

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel import sparse_choice
from dist_ml.data_parallel.gradient_exchange import choose_overlap
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.local_reducer import LocalReducer
from dist_ml.data_parallel.reduced_gradients import ReducedGradients
from dist_ml.errors import ConfigError, MachineError
from dist_ml.measure.cost_model import CostModel, Link
from dist_ml.models import MLP
from dist_ml.train.exchange import (
    DATA_PARALLEL,
    Exchange,
    Setting,
    build_exchange,
)
from dist_ml.train.members import keys_read
from tests.unit.train_worlds import changed


class Reading:
    """A configuration that notes which of its keys are read; of a group, those with a dot."""

    def __init__(self, config: Any, read: set[str], prefix: str = "") -> None:
        self._config, self._read, self._prefix = config, read, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        key = f"{self._prefix}{name}"
        if dataclasses.is_dataclass(value):
            return Reading(value, self._read, f"{key}.")
        self._read.add(key)
        return value


def model() -> torch.nn.Module:
    return MLP((6, 5, 3), "tanh", dtype=torch.float64)


def built(config: Any, comm: Communicator, num_steps: int = 8) -> tuple[torch.nn.Module, Exchange]:
    own = model()
    return own, build_exchange(Setting(config, dict(own.named_parameters()), 2, comm, num_steps))


def step(own: torch.nn.Module, exchange: Exchange, inputs: torch.Tensor) -> ReducedGradients:
    exchange.reducer.begin()
    exchange.reducer.start()
    exchange.reducer.slots[0] += 1
    own(inputs).square().sum().backward()
    reduced = exchange.reducer.finish()
    exchange.optimizer.step()
    if exchange.gather is not None:
        exchange.gather()
    if exchange.averager is not None:
        exchange.averager.after_update(1.0)
    return reduced


@pytest.mark.parametrize(
    ("name", "overlap"),
    [("dense", "none"), *((name, "auto") for name in DATA_PARALLEL if name != "dense")],
)
def test_a_member_reads_the_keys_that_it_says_it_reads(name: str, overlap: str) -> None:
    """A key that is listed and never looked at would be accepted and ignored; one that is looked at
    and not listed would be refused where it has an effect.
    """
    config = changed(
        data_parallel={"name": name},
        allreduce={"name": "ring", "overlap": overlap},
    )

    def body(comm: Communicator) -> set[str]:
        read: set[str] = set()
        own, exchange = built(Reading(config, read), comm)
        for number in range(8):
            step(own, exchange, torch.full((2, 6), 0.01 * number, dtype=torch.float64))
        if exchange.averager is not None:
            exchange.averager.close()
        exchange.reducer.close()
        return read

    groups = ("allreduce.", "data_parallel.", "sparse.")
    for read in run_ranks(2, body):
        found = {key for key in read if key.startswith(groups)} - {"data_parallel.name"}
        assert found == {key for key in keys_read(config) if key.startswith(groups)}


@pytest.mark.parametrize(
    "changes",
    [
        {"allreduce": {"name": "hierarchical"}},
        {"data_parallel": {"name": "periodic"}, "allreduce": {"name": "hierarchical"}},
        {"data_parallel": {"name": "daso"}},
        {"sparse": {"allreduce": "oktopk", "overlap": 2}, "optimizer": {"momentum": 0.0}},
        {"sparse": {"allreduce": "oktopk", "hierarchical": True}, "optimizer": {"momentum": 0.0}},
    ],
    ids=["dense", "periodic", "daso", "sparse, overlap", "sparse, hierarchical"],
)
def test_closing_gives_back_the_communicators_that_building_made(changes: dict[str, Any]) -> None:
    """MPICH has 2,048 for all that a process makes."""

    def body(comm: Communicator) -> tuple[int, int]:
        own, exchange = built(changed(**changes), comm)
        step(own, exchange, torch.ones(2, 6, dtype=torch.float64))
        made = len(comm._children)
        if exchange.averager is not None:
            exchange.averager.close()
        exchange.reducer.close()
        return made, len(comm._children)

    for made, left in run_ranks(4, body, [0, 0, 1, 1]):
        assert made > left == 0


def test_an_unknown_way_to_share_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="dense, zero1, zero2, periodic, daso"):
        built(changed(data_parallel={"name": "fsdp"}), Communicator(Loopback()))


@pytest.mark.parametrize(
    ("nodes", "overlap", "expected"),
    [
        ([0], "auto", "none"),
        ([0], "thread", "none"),
        ([0, 0, 0], "auto", "none"),
        ([0, 0, 1], "auto", "thread"),
        ([0, 1], "none", "none"),
        ([0, 0], "poll", "poll"),
    ],
    ids=str,
)
def test_overlap_is_chosen_by_whether_there_is_a_wire_to_wait_for(
    nodes: list[int], overlap: str, expected: str
) -> None:
    found = run_ranks(len(nodes), lambda comm: choose_overlap(overlap, comm), nodes)
    assert found == [expected] * len(nodes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allreduce": {"overlap": "thread"}}, "allreduce.overlap=thread needs MPI_THREAD_SERIAL"),
        (
            {"sparse": {"allreduce": "oktopk", "overlap": 2}, "optimizer": {"momentum": 0.0}},
            "sparse.overlap=2 needs MPI_THREAD_SERIALIZED",
        ),
        ({"data_parallel": {"name": "daso"}}, "data_parallel=daso needs MPI_THREAD_MULTIPLE"),
    ],
    ids=["dense", "sparse", "daso"],
)
def test_what_needs_threads_is_refused_where_mpi_grants_none(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadTransport, "thread_level", "FUNNELED")

    def body(comm: Communicator) -> tuple[str, bool]:
        with pytest.raises(MachineError) as caught:
            built(changed(**changes), comm)
        return str(caught.value), caught.value.agreed

    for words, agreed in run_ranks(2, body):
        assert message in words
        assert "this MPI grants MPI_THREAD_FUNNELED" in words
        assert agreed


@pytest.mark.parametrize(
    "changes",
    [
        {"data_parallel": {"name": "daso"}},
        {
            "sparse": {"allreduce": "oktopk", "hierarchical": True},
            "optimizer": {"momentum": 0.0},
        },
    ],
    ids=["daso", "hierarchical"],
)
def test_nodes_of_different_sizes_are_refused_on_all_ranks(changes: dict[str, Any]) -> None:
    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError, match="as many ranks on e") as caught:
            built(changed(**changes), comm)
        return str(caught.value)

    assert len(set(run_ranks(3, body, [0, 0, 1]))) == 1


@pytest.mark.parametrize("intra_node", [True, False], ids=["a node's sum", "a rank's own"])
@pytest.mark.parametrize("nodes", [[0], [0, 0, 0], [0, 0, 1, 1], [0, 1, 2]], ids=str)
def test_local_gradients_are_scaled_to_a_sum_over_all(nodes: list[int], intra_node: bool) -> None:
    """As if the other nodes, or ranks, had the same samples; the slots are of all."""

    def body(comm: Communicator) -> None:
        parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        own = family.make("shared_memory", comm.split_by_node()) if intra_node else None
        reducer = LocalReducer(
            FlatGradients([parameter], 1, own.allocate if own else None), comm, own
        )
        mine = torch.arange(5.0, dtype=torch.float64)
        for repeat in range(2):
            reducer.begin()
            (parameter * (mine + comm.rank)).sum().backward()
            reducer.slots[0] += comm.rank + repeat
            reduced = reducer.finish()
            peers = [r for r, node in enumerate(nodes) if node == nodes[comm.rank]]
            summed = peers if intra_node else [comm.rank]
            total = sum(mine + rank for rank in summed) * comm.size / len(summed)
            torch.testing.assert_close(parameter.grad, total)
            assert reduced.slots == [sum(range(comm.size)) + comm.size * repeat]
            assert reduced.norm() == pytest.approx(float(total.norm()))  # type: ignore[union-attr]
            assert not reduced.is_agreed

    run_ranks(len(nodes), body, nodes)


@pytest.mark.parametrize(
    ("name", "overlap"),
    [
        ("dense", "none"),
        ("dense", "thread"),
        ("dense", "poll"),
        ("zero1", "auto"),
        ("zero2", "auto"),
    ],
)
def test_every_exchange_of_gradients_trains_as_one_rank_with_all_samples(
    name: str, overlap: str
) -> None:
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 6)))
    config = changed(
        data_parallel={"name": name},
        allreduce={"name": "ring", "overlap": overlap, "bucket_bytes": 64},
    )

    def body(comm: Communicator) -> torch.Tensor:
        own, exchange = built(config, comm)
        for _ in range(3):
            reduced = step(own, exchange, inputs[comm.rank :: comm.size])
            assert reduced.slots == [comm.size, 0.0]
        exchange.reducer.close()
        return torch.cat([p.detach().reshape(-1) for p in own.parameters()])

    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        plain(inputs).square().sum().backward()
        optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in plain.parameters()])
    for found in run_ranks(3, body):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("bytes_per_second", "sparse"), [(1e4, True), (1e13, False)])
def test_auto_is_sparse_where_links_are_slow_and_dense_where_fast(
    bytes_per_second: float, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(1e-6, bytes_per_second)
    monkeypatch.setattr(sparse_choice, "probe", lambda _: CostModel(link, link, 1e10, 1e-8))

    def body(comm: Communicator) -> str:
        config = SparseConfig("auto", density=0.01)
        return sparse_choice.resolve(config, 1_000_000, comm).allreduce

    names = run_ranks(3, body)
    assert names == [names[0]] * 3
    assert (names[0] != "none") == sparse
    assert names[0] != "auto"
