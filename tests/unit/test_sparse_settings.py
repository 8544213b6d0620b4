"""Names and settings of sparse exchanges: what the dict holds is accepted, the rest is refused."""

from typing import Any

import pytest
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Settings, check, costs, fastest, make
from dist_ml.comm.sparse.entries import MAX_LENGTH, check_length
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.sparse_choice import exchange_settings, resolve
from dist_ml.errors import CommunicationError, ConfigError
from dist_ml.measure.cost_model import CostModel, Link

CHANGED: dict[str, Any] = {
    "values": "bf16",
    "qsgd_bits": 4,
    "repartition_steps": 7,
    "threshold_steps": 7,
}


@pytest.mark.parametrize("key", CHANGED)
@pytest.mark.parametrize("name", SPARSE_ALLREDUCES)
def test_a_setting_is_taken_by_those_that_read_it_and_refused_by_the_others(
    name: str, key: str
) -> None:
    settings = Settings(**{key: CHANGED[key]})
    if key in SPARSE_ALLREDUCES[name].reads:
        check(name, settings)
    else:
        with pytest.raises(ConfigError, match=f"sparse.{key}={CHANGED[key]} has no effect with"):
            check(name, settings)
    check("auto", settings)
    check("none", settings)


def test_the_refusal_names_who_reads_the_setting() -> None:
    with pytest.raises(ConfigError, match="only oktopk, spardl can use it; leave it at 64"):
        check("gtopk", Settings(repartition_steps=8))


@pytest.mark.parametrize("values", ["bf16", "int4"])
def test_fp64_is_not_rounded_below_fp32(values: str) -> None:
    for name in ("oktopk", "auto"):
        with pytest.raises(ConfigError, match=f"sparse.values={values} would round fp64"):
            resolve(SparseConfig(name, values=values), 100, None, "float64")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allreduce": "oktop"}, r"sparse.allreduce=oktop is not one of none, auto, dense.*oktopk"),
        ({"allreduce": "gtopk", "selection": "top"}, "sparse.selection=top is not one of exact"),
        ({"allreduce": "gtopk", "qsgd_bits": 4}, "qsgd_bits=4 has no effect with .*gtopk"),
        ({"allreduce": "gtopk", "threshold_steps": 4}, "threshold_steps=4 has no effect"),
    ],
)
def test_all_ranks_refuse_what_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError, match=message) as caught:
            resolve(SparseConfig(**changes), 1000, comm)
        return str(caught.value)

    assert len(set(run_ranks(3, body))) == 1


def test_a_reused_threshold_reads_its_period_whatever_the_sum() -> None:
    config = SparseConfig("gtopk", selection="threshold", threshold_steps=4)
    assert resolve(config, 1000, None) is config  # type: ignore[arg-type]
    assert exchange_settings(config, "float64", 5) == Settings("float64", threshold_steps=4, seed=5)


def test_make_refuses_an_unknown_name_with_the_list() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(ConfigError, match="is not one of dense, allgather"):
            make("topk", comm, 100, Settings())

    run_ranks(2, body)


def test_auto_on_one_rank_is_dense() -> None:
    def body(comm: Communicator) -> str:
        return resolve(SparseConfig("auto"), 1000, comm).allreduce

    assert run_ranks(1, body) == ["none"]


@pytest.mark.parametrize(
    ("bytes_per_second", "density", "expected"), [(1e12, 0.5, "dense"), (1e6, 0.001, "not dense")]
)
def test_fastest_is_sparse_where_links_are_slow(
    bytes_per_second: float, density: float, expected: str
) -> None:
    n = 1_000_000
    link = Link(1e-5, bytes_per_second)
    model = CostModel(link, link, 1e10, 2.5e-9)
    name = fastest(n, round(density * n), 8, Settings(), model)
    assert (name == "dense") == (expected == "dense")
    planned = costs(n, round(density * n), 8, Settings())
    assert planned.keys() == SPARSE_ALLREDUCES.keys()
    assert all(cost.words > 0 and cost.messages > 0 for cost in planned.values())


def test_an_index_must_fit_32_bits_and_the_remedy_names_a_key_that_exists() -> None:
    check_length(MAX_LENGTH)
    with pytest.raises(CommunicationError, match=r"sparse\.overlap=2") as caught:
        check_length(MAX_LENGTH + 1)
    assert hasattr(SparseConfig(), "overlap")
    assert "bucket_mib" not in str(caught.value)
