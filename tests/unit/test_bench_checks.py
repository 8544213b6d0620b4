"""Every check of a benchmark is green on good figures and turns red on bad ones."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dist_ml.bench import (
    allreduce_checks,
    allreduce_words,
    collectives,
    gemm_words,
    kernel,
    kernel_step,
    overlap,
    reproduce,
    selection,
    sharded,
    sparse,
    sparse_curve,
    sparse_scaling,
)
from dist_ml.bench.bare_step import BARE, FUSED
from dist_ml.bench.form import Check
from dist_ml.bench.kernel_step import OURS_ON_TORCH
from dist_ml.bench.step_candidates import OURS
from tests.unit.bench_worlds import failed

Figures = dict[str, Any]
NAN = math.nan


def changed(good: Mapping[str, Any], **bad: Any) -> Figures:
    return {**good, **bad}


# --- words of allreduces: the formula against what passed below the ledger
WORDS: Figures = {"ranks": 4, "algorithm": "ring", "n": 400, "stated words": 600,
                  "seen words": 600, "messages": 6, "unlike": 0, "wrong": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("records", "names"),
    [
        pytest.param([WORDS], [], id="good"),
        pytest.param([changed(WORDS, algorithm="native", **{"seen words": None}), WORDS], [],
                     id="unseen library collective"),
        pytest.param([changed(WORDS, unlike=1)],
                     ["ranks whose words or messages differ from those seen"], id="unlike"),
        pytest.param([changed(WORDS, wrong=1)],
                     ["ranks whose sums differ from the exact ones"], id="wrong sum"),
        pytest.param([changed(WORDS, **{"seen words": 1200})],
                     ["seen words over 2n(P-1)/P where P divides n"], id="doubled"),
        pytest.param([changed(WORDS, **{"seen words": 300})], ["the least of them"], id="halved"),
        pytest.param([changed(WORDS, **{"seen words": None})],
                     ["share of message-based calls that were seen"], id="nothing seen"),
    ],
)  # fmt: skip
def test_words_of_allreduces(records: list[Figures], names: list[str]) -> None:
    assert failed(allreduce_words.word_checks(records, divisible=100)) == names


# --- a sparse curve that never comes down to dense's loss
@pytest.mark.parametrize(
    ("sparse_curve_points", "green"),
    [
        pytest.param([(0.5, 1.0), (1.0, 0.1)], True, id="sooner than dense"),
        pytest.param([(0.5, 1.0), (11.0, 0.1)], False, id="later than dense"),
        pytest.param([(0.5, 1.0), (9.0, 0.9)], False, id="never"),
        pytest.param([(0.5, NAN), (9.0, NAN)], False, id="not finite"),
    ],
)
def test_a_curve_that_never_reaches_dense_fails(
    sparse_curve_points: list[tuple[float, float]], green: bool
) -> None:
    curves = {"dense": [(5.0, 2.0), (10.0, 0.2)], "oktopk": sparse_curve_points}
    never = {**curves, "oktopk": [(9.0, 0.9)]}
    assert (failed(sparse_curve.curve_checks([curves])) == []) is green
    assert (failed(sparse_curve.curve_checks([curves, never, curves])) == []) is green  # medians
    assert failed(sparse_curve.curve_checks([curves, never, never]))


# --- sparse steps: like with like, and bytes seen against bytes stated
def sparse_measured(**seconds: float) -> Figures:
    figures = {
        name: {"precision": sparse.BASELINES.get(name, "fp32"), "bytes_sent": 100.0}
        for name in [*sparse.BASELINES, "oktopk", "spardl_bf16"]
    }
    figures["spardl_bf16"]["precision"] = "16 bit"
    times = {name: [12.0, 13.0, 12.0] for name in sparse.BASELINES}
    times |= {"oktopk": [0.5] * 3, "spardl_bf16": [0.5] * 3}
    times |= {name: [value] * 3 for name, value in seconds.items()}
    return {"ranks": 4, "seconds": times, "figures": figures}


def test_sparse_is_compared_with_baselines_of_as_many_bits() -> None:
    good = sparse_measured()
    records, checks = sparse.summary("100mbit", 32, good)
    assert failed(checks) == []
    assert [check.name for check in checks] == [
        "best fp32 sparse over best fp32 baseline at 100mbit",
        "best 16 bit sparse over best 16 bit baseline at 100mbit",
    ]
    good["seconds"]["ring, bf16"] = [1.0] * 3  # a 16-bit ring must not count against fp32
    records, checks = sparse.summary("100mbit", 32, good)
    assert failed(checks) == ["best 16 bit sparse over best 16 bit baseline at 100mbit"]
    row = next(record for record in records if record["candidate"] == "oktopk")
    assert row["baseline"] != "ring, bf16"
    assert row["over_baseline"] == pytest.approx(24.0)
    _, checks = sparse.summary("100mbit", 32, sparse_measured(oktopk=6.0))
    assert failed(checks) == ["best fp32 sparse over best fp32 baseline at 100mbit"]


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        pytest.param(105.0, [], id="headers"),
        pytest.param(150.0, ["bytes seen over stated at 1gbit, most"], id="more than stated"),
        pytest.param(60.0, ["bytes seen over stated at 1gbit, least"], id="less than stated"),
        pytest.param(0.0, ["bytes seen over stated at 1gbit, least"], id="nothing seen"),
    ],
)
def test_bytes_on_the_links_are_those_stated(seen: float, names: list[str]) -> None:
    figures = {
        "dense": {"bytes_sent": 1e8, "bytes_seen": 5e8},  # MPI's own collective
        "ddp gloo": {"bytes_sent": 0.0, "bytes_seen": 1e8},
        "dense ring": {"bytes_sent": 1e8, "bytes_seen": 1.04e8},
        "gtopk": {"bytes_sent": 2e3, "bytes_seen": 4e3},  # mostly headers
        "oktopk": {"bytes_sent": 1e8, "bytes_seen": 1e6 * seen},
    }
    assert failed(sparse.link_checks("1gbit", figures)) == names


# --- the tuner's choice is a candidate of its own
@pytest.mark.parametrize(
    ("rates", "chosen", "names"),
    [
        pytest.param({"torch": 50.0, "openblas": 60.0, "tuned": 60.0}, "openblas", [], id="good"),
        pytest.param({"torch": 50.0, "openblas": 45.0, "tuned": 45.0}, "openblas",
                     ["tuned kernel over torch, worst shape"], id="slower than torch"),
        pytest.param({"torch": 50.0, "openblas": 90.0, "tuned": 51.0}, "openblas",
                     ["tuned kernel over the fastest, worst shape"], id="not the fastest"),
        pytest.param({"torch": 50.0, "openblas": 40.0, "tuned": 50.0}, "torch",
                     ["shapes for which the tuner chose another kernel than torch"],
                     id="torch over itself"),
    ],
)  # fmt: skip
def test_the_tuner(rates: dict[str, float], chosen: str, names: list[str]) -> None:
    found = {"2x2x2": {**rates, "torch bf16": 500.0}}
    assert failed(kernel.tuner_checks(found, {"2x2x2": chosen})) == names


# --- step over the best bare loop, and kernel over kernel
STEPS = {OURS: [1.0], OURS_ON_TORCH: [1.2], BARE: [2.5], FUSED: [2.0]}


@pytest.mark.parametrize(
    ("seconds", "loss", "names"),
    [
        pytest.param(STEPS, 1e-7, [], id="good"),
        pytest.param(changed(STEPS, **{FUSED: [1.5]}), 1e-7,
                     ["best bare step over ours at batch 128"], id="a fused loop is as good"),
        pytest.param(changed(STEPS, **{OURS_ON_TORCH: [0.9]}), 1e-7,
                     ["step on torch's kernel over tuned at batch 128"], id="kernel is slower"),
        pytest.param(STEPS, 1e-3, ["relative difference of losses at batch 128"], id="loss"),
        pytest.param(STEPS, NAN, ["relative difference of losses at batch 128"], id="loss is NaN"),
    ],
)  # fmt: skip
def test_steps_on_tuned_kernels(
    seconds: Mapping[str, list[float]], loss: float, names: list[str]
) -> None:
    assert failed(kernel_step.step_checks(128, seconds, loss)) == names


# --- memory of sharded optimizers
SHARD: Figures = {"data_parallel": "zero2", "share_times_ranks": 1.0, "loss_difference": 0.0,
                  "peak_over_dense": 0.8}  # fmt: skip


@pytest.mark.parametrize(
    ("records", "count"),
    [
        pytest.param([SHARD], 0, id="good"),
        pytest.param([SHARD, changed(SHARD, share_times_ranks=1.2)], 1, id="more memory"),
        pytest.param([SHARD, changed(SHARD, share_times_ranks=0.5)], 1, id="not measured"),
        pytest.param([SHARD, changed(SHARD, peak_over_dense=1.1)], 1, id="higher peak"),
        pytest.param([SHARD, changed(SHARD, peak_over_dense=None)], 1, id="no peak was seen"),
        pytest.param([SHARD, changed(SHARD, loss_difference=1e-3)], 1, id="other losses"),
        pytest.param([changed(SHARD, loss_difference=NAN), SHARD], 1, id="losses are NaN"),
    ],
)
def test_sharded(records: list[Figures], count: int) -> None:
    assert len(failed(sharded.shard_checks(records))) == count


# --- the default run
RUN: Figures = {"precision": "fp32", "difference": 1e-7, "test_accuracy": 0.98}
DOUBLE = changed(RUN, precision="fp64", difference=1e-14)


@pytest.mark.parametrize(
    ("records", "count"),
    [
        pytest.param([RUN, DOUBLE], 0, id="good"),
        pytest.param([RUN, changed(RUN, difference=1e-2), DOUBLE], 1, id="fp32 differs"),
        pytest.param([RUN, changed(DOUBLE, difference=1e-7)], 1, id="fp64 differs"),
        pytest.param([changed(RUN, test_accuracy=0.9), RUN, DOUBLE], 1, id="accuracy"),
        pytest.param([RUN, changed(RUN, difference=NAN), DOUBLE], 1, id="losses are NaN"),
    ],
)
def test_the_default_run(records: list[Figures], count: int) -> None:
    assert len(failed(reproduce.loss_checks(records))) == count


@pytest.mark.parametrize(
    ("losses", "reference", "expected"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([NAN, 2.0], [1.0, 2.0], NAN), ([1.0, NAN], [1.0, 2.0], NAN)],
)
def test_a_difference_sees_nan(
    losses: list[float], reference: list[float], expected: float
) -> None:
    assert reproduce.difference(losses, reference) == pytest.approx(expected, nan_ok=True)


# --- collectives
def collective(size: int, added: float, ratio: float) -> Figures:
    return {"bytes": size, "added_us": added, "ratio": ratio}


@pytest.mark.parametrize(
    ("records", "count"),
    [
        pytest.param([collective(64, 4.0, 3.0), collective(1 << 20, 90.0, 1.01)], 0, id="good"),
        pytest.param([collective(64, 11.0, 1.1), collective(1 << 20, 0.0, 1.0)], 1, id="small"),
        pytest.param([collective(64, 1.0, 1.1), collective(1 << 22, 0.0, 1.1)], 1, id="large"),
        pytest.param([collective(64, -5.0, 1.0)], 0, id="faster"),
    ],
)
def test_collectives(records: list[Figures], count: int) -> None:
    checks = collectives.size_checks(records)
    assert len(checks) == len({record["bytes"] >= 1 << 20 for record in records})
    assert len(failed(checks)) == count


# --- selection
SELECTED = {
    "torch.add": [1.0], "torch.topk": [20.0], "torch.kthvalue": [30.0], "np.partition": [12.0],
    "sampled torch.topk": [6.0], selection.REUSED: [2.0], selection.ANEW: [10.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        pytest.param(SELECTED, 0, id="good"),
        pytest.param(changed(SELECTED, **{selection.REUSED: [3.5]}), 1, id="slower than addition"),
        pytest.param(changed(SELECTED, **{"np.partition": [5.0]}), 2, id="partition is quick"),
        pytest.param(changed(SELECTED, **{"sampled torch.topk": [1.0]}), 1, id="sampling is quick"),
    ],
)
def test_selection(seconds: Mapping[str, list[float]], count: int) -> None:
    assert len(failed(selection.selection_checks(seconds))) == count


# --- overlap
def overlapped(after: float, thread: float) -> Figures:
    seconds = {"no exchange": [1.0] * 3, "after": [after] * 3, "thread": [thread] * 3}
    seconds |= {"poll": [after] * 3}
    return {"seconds": seconds, "processor": seconds, "backward": 1.0}


@pytest.mark.parametrize(
    ("found", "hidden", "green"),
    [
        pytest.param(overlapped(2.0, 1.1), 0.9, True, id="good"),
        pytest.param(overlapped(2.0, 1.5), 0.5, False, id="half"),
        pytest.param(overlapped(1.0, 1.0), 0.0, False, id="there was no exchange"),
        pytest.param(overlapped(2.0, NAN), NAN, False, id="not measured"),
    ],
)
def test_overlap(found: Figures, hidden: float, green: bool) -> None:
    records, checks = overlap.hidden(found)
    assert records[0]["hidden"] == pytest.approx(hidden, nan_ok=True)
    assert (failed(checks) == []) is green


@pytest.mark.parametrize(
    ("ours", "count"),
    [pytest.param(1.1, 0, id="good"), pytest.param(1.19, 1, id="exchange"),
     pytest.param(1.5, 2, id="slow")],
)  # fmt: skip
def test_step_over_ddp_on_a_node(ours: float, count: int) -> None:
    seconds = {"after": [ours] * 3, "ddp gloo": [2.0] * 3, "no exchange": [1.0] * 3}
    assert len(failed(overlap.node_checks(seconds))) == count


# --- Ok-Topk's words
@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(300.0, [], id="good"),
        pytest.param(500.0, ["oktopk words over 6k(P-1)/P, most"], id="too many"),
        pytest.param(1.0, ["oktopk words over 6k(P-1)/P, least"], id="not counted"),
    ],
)
def test_words_of_oktopk(words: float, names: list[str]) -> None:
    records = [{"ranks": 4, "variant": "oktopk", "words": words}, {"ranks": 4, "variant": "gtopk"}]
    assert failed(sparse_scaling.oktopk_checks(records, k=100)) == names


@pytest.mark.parametrize(("over_planned", "green"), [(1.3, True), (0.3, False), (NAN, False)])
def test_plans_of_sparse_sums(over_planned: float, green: bool) -> None:
    records = [{"ranks": 4, "over_planned": over_planned}, {"ranks": 4, "latency_us": 5.0}]
    assert sparse_scaling.plan_check(records).passed is green


# --- products
PRODUCTS: Figures = {"products": 9, "seen": 4, "error over bound": 0.9, "relayouts wrong": 0,
                     "seen, not as planned": 0, "ledger not as planned": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        pytest.param({}, 0, id="good"),
        pytest.param({"error over bound": 1.2}, 1, id="wrong product"),
        pytest.param({"error over bound": NAN}, 1, id="NaN"),
        pytest.param({"seen, not as planned": 1}, 1, id="other words seen"),
        pytest.param({"ledger not as planned": 1}, 1, id="other words in the ledger"),
        pytest.param({"relayouts wrong": 1}, 1, id="moved twice"),
        pytest.param({"products": 0, "seen": 0}, 2, id="nothing ran"),
    ],
)
def test_products(bad: Figures, count: int) -> None:
    assert len(failed(gemm_words.product_checks([changed(PRODUCTS, **bad)]))) == count


@pytest.mark.parametrize(
    ("check", "arguments", "count"),
    [
        pytest.param(gemm_words.bound_checks, ([1.0, 1.2], [1.1], [1.1], [1.0]), 0, id="good"),
        pytest.param(
            gemm_words.bound_checks, ([1.5], [1.1], [1.1], [1.0]), 1, id="above the bound"
        ),
        pytest.param(
            gemm_words.bound_checks, ([0.5], [1.1], [1.1], [0.5]), 1, id="below the bound"
        ),
        pytest.param(gemm_words.bound_checks, ([1.0], [1.3], [1.3], [1.0]), 2, id="limited memory"),
        pytest.param(gemm_words.bound_checks, ([0.99], [1.1], [1.1], [1.0]), 0, id="an idle rank"),
        pytest.param(gemm_words.memory_checks, ([{"measured / planned": 0.9}],), 0, id="memory"),
        pytest.param(gemm_words.memory_checks, ([{"measured / planned": 1.2}],), 1, id="more"),
        pytest.param(gemm_words.memory_checks, ([{"measured / planned": 0.0}],), 1, id="unseen"),
    ],
)
def test_plans(check: Callable[..., list[Check]], arguments: tuple[Any, ...], count: int) -> None:
    assert len(failed(check(*arguments))) == count


# --- allreduce
def reduced(algorithm: str, ms: float, setting: str = "tuned") -> Figures:
    return {"bytes": 100_000_000, "mpi": "mpich", "setting": setting, "algorithm": algorithm,
            "ms": ms}  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "ordinary", "count"),
    [pytest.param(10.0, 30.0, 0, id="good"), pytest.param(100.0, 30.0, 2, id="slow"),
     pytest.param(10.0, 70.0, 1, id="copies take too long")],
)  # fmt: skip
def test_shared_memory_allreduce(ours: float, ordinary: float, count: int) -> None:
    records = [reduced("shared_memory", ours), reduced("shared_memory, any tensor", ordinary),
               reduced("mpi", 60.0), reduced("limit", 9.0)]  # fmt: skip
    assert len(failed(allreduce_checks.node_checks(records, 2))) == count


@pytest.mark.parametrize(
    ("ours", "tuned", "names"),
    [
        pytest.param(11000.0, 20000.0, [], id="good"),
        pytest.param(11000.0, 11100.0, ["tuned"], id="our settings alone do it"),
        pytest.param(19000.0, 40000.0, ["bound", "as it comes"], id="slow"),
    ],
)
def test_allreduce_on_links(ours: float, tuned: float, names: list[str]) -> None:
    """Against the faster of both MPIs, as it comes and with our settings."""
    records = [reduced("ring", ours), reduced("mpi", tuned), reduced("mpi", 99999.0, "as it comes")]
    records += [changed(reduced("mpi", 21000.0, "as it comes"), mpi="openmpi", algorithm="mpi")]
    records += [changed(reduced("ring", ours), mpi="openmpi")]
    checks = allreduce_checks.emulated_network_checks(records, 3, 3, "100mbit")
    bound = 2 * 2 / 3 * 100_000_000 * 8 / 1e8 * 1e3
    assert checks[0].value == pytest.approx(ours / bound)
    found = {name for name in ("tuned", "as it comes", "bound") for check in checks
             if not check.passed and name in check.name}  # fmt: skip
    assert found == set(names)
