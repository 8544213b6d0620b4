"""Every benchmark's measuring part at tiny size, on one rank or on threads, and what its `run`
makes of it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_ml.bench import (
    allreduce,
    allreduce_words,
    bare_step,
    collectives,
    gemm,
    kernel,
    kernel_part,
    memory,
    overlap,
    overlap_part,
    recorder_part,
    reproduce,
    selection,
    sharded,
    sparse,
    sparse_curve,
    sparse_scaling,
    sparse_scaling_part,
    step,
    step_candidates,
)
from dist_ml.bench.configured import to_arguments, with_widths
from dist_ml.bench.counting_transport import counted
from dist_ml.bench.selection_baselines import BASELINES, EXACT
from dist_ml.bench.sparse_step import link_bytes
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from tests.thread_world import run_ranks
from tests.unit.bench_worlds import GivenWorlds, alone, bench_config, on_threads, only_finite


def tiny(*overrides: str) -> TrainConfig:
    train = bench_config("step", *overrides).train
    return with_widths(train, (6, 8, 3), 4)


def test_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_candidates, "alone", lambda *_: lambda: 1e-3)  # no process each time
    part = {"train": to_arguments(tiny()), "num_samples": 32, "steps": 2, "rounds": 2}
    seconds = alone(step.measure, part)
    assert set(seconds) == {"dist_ml", bare_step.BARE, bare_step.FUSED, bare_step.ALONE}
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
    result = step.run(bench_config("step"), GivenWorlds({"step": seconds}))
    only_finite(result)
    (check,) = result.checks
    assert check.name == "step over the best bare loop"


def test_a_bare_loop_of_its_own_has_none_of_our_thread_settings() -> None:
    given = {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0", "PATH": "/bin", "HOME": "/"}
    assert bare_step.plain_environment(given) == {"PATH": "/bin", "HOME": "/"}


def test_bare_and_fused_loops_learn_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The arguments that a process of its own gets are read as they were written."""
    bare = bare_step.BareStep((4, 8, 2), 4, 0.1, 0.9, 0.0, fused=True)
    text = json.dumps({"step": dataclasses.asdict(bare), "num_samples": 16, "steps": 2})
    bare_step.main([text])
    assert 0 < float(capsys.readouterr().out) < 60


def test_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    def raw(comm: Communicator, array: np.ndarray) -> Any:
        return lambda: comm.transport.allreduce(array, "sum")

    monkeypatch.setattr(collectives.mpi, "raw_allreduce", raw)
    part = {"sizes_bytes": [8, 1 << 20], "rounds": 3, "round_seconds": 1e-4}
    found = on_threads(2, collectives.measure, part)
    assert [sorted(times) for times in found] == [["dist_ml", "mpi4py"]] * 2
    wanted = bench_config("collectives", "sizes_bytes=[8,1048576]")
    recording = on_threads(2, recorder_part.measure, {"rounds": 2})
    given = GivenWorlds({"collectives": found, "recorder": recording})
    result = collectives.run(wanted, given)
    only_finite(result)
    assert [record["bytes"] for record in result.records] == [8, 1 << 20]
    assert len(result.checks) == 4


def test_allreduce() -> None:
    part = {"sizes_bytes": [64, 4096], "candidates": ["ring", "native:fp32", "limit"],
            "rounds": 2, "round_seconds": 1e-4}  # fmt: skip
    found = on_threads(2, allreduce.measure, part)
    assert list(found) == ["64", "4096"]
    assert all(len(times) == 2 for times in found["64"].values())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_words_seen_are_words_stated(size: int) -> None:
    part = {"algorithms": ["ring", "rabenseifner", "native"], "sizes": [0, 1, 5, 100 * size]}
    records = on_threads(size, allreduce_words.measure, part)
    checks = allreduce_words.word_checks(records, 100)
    assert all(check.passed for check in checks), [str(check) for check in checks]
    unseen = {record["algorithm"] for record in records if record["seen words"] is None}
    assert unseen == ({"native"} if size > 1 else set())


def test_a_doubled_reduction_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns the check red: an algorithm that moves everything twice and says once."""

    class Twice:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __call__(self, x: np.ndarray) -> None:
            other = x.copy()
            self._inner(other)
            self._inner(x)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    make = family.make
    monkeypatch.setattr(allreduce_words.family, "make", lambda *args: Twice(make(*args)))
    part = {"algorithms": ["ring"], "sizes": [400]}
    records = on_threads(4, allreduce_words.measure, part)
    failed = [check.name for check in allreduce_words.word_checks(records, 100) if not check.passed]
    assert "ranks whose words or messages differ from those seen" in failed


def test_what_is_not_made_of_messages_is_not_seen() -> None:
    def body(comm: Communicator) -> tuple[bool, int, bool]:
        own, seen = counted(comm)
        x = np.ones(10, np.float32)
        if own.rank == 0:
            own.send(x, 1)
        elif own.rank == 1:
            own.receive(x, 0)
        before = seen.whole
        own.allreduce(x)
        return before, seen.sent + seen.received, seen.whole

    assert run_ranks(2, body) == [(True, 10, False)] * 2


def test_reproduce() -> None:
    train = dataclasses.replace(tiny(), epochs=1)
    data = dataclasses.replace(train.data, num_train=12, num_test=4)
    train = dataclasses.replace(train, data=data)
    runs = {n: on_threads(n, reproduce.measure, to_arguments(train)) for n in (1, 2)}
    assert len(runs[1]["losses"]) == 3
    worlds = GivenWorlds({"losses": lambda ranks, _: runs[ranks]})
    result = reproduce.run(bench_config("reproduce", "ranks=[1,2]"), worlds)
    assert max(record["difference"] for record in result.records) < 1e-5
    assert [ranks for _, ranks, _ in worlds.arguments] == [1, 2, 1, 2]
    with pytest.raises(ConfigError, match=r"ranks=\[3\] has nothing to compare"):
        bench_config("reproduce", "ranks=[3]")


def test_sharded_and_memory() -> None:
    dense, zero = ({"train": to_arguments(tiny(f"train.data_parallel.name={name}")),
                    "num_steps": 2} for name in ("dense", "zero2"))  # fmt: skip
    found = [on_threads(2, sharded.measure, part) for part in (dense, zero)]
    assert found[0]["losses"] == pytest.approx(found[1]["losses"])
    assert all(each["kept"] > 0 and each["peak"] >= 0 for each in found)
    worlds = GivenWorlds({"sharded": found[0]})
    result = sharded.run(bench_config("sharded", "ranks=[2]", "stages=[zero1]"), worlds)
    assert len(result.checks) == 1  # no claim on memory where ZeRO-2 was not measured
    told = alone(memory.measure, {"train": to_arguments(tiny()), "num_steps": 1})
    assert told["parameters"] == 4 * (6 * 8 + 8 + 8 * 3 + 3)
    good = {"parameters": 100, "peak": 400, "activations": 50, "loaded by torch": 10}
    names = ["parameters, gradients and momentum at least"]
    for peak, expected in ((400, []), (200, names)):
        result = memory.run(bench_config("memory"), GivenWorlds({"memory": {**good, "peak": peak}}))
        assert [check.name for check in result.checks if not check.passed] == expected


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_select_what_they_say(name: str) -> None:
    """What is taken and what is left are the accumulated gradient; exact ones take the largest."""
    random = np.random.default_rng(1)
    residual, gradient = random.standard_normal((2, 5000)).astype(np.float32)
    total, k = residual + gradient, 50
    indices, values = BASELINES[name](residual, gradient, k)
    whole = residual.copy()
    whole[indices] += values
    np.testing.assert_array_equal(whole, total)
    np.testing.assert_array_equal(residual[indices], 0)
    if name in EXACT:
        assert set(indices.tolist()) == set(np.argsort(-np.abs(total))[:k].tolist())
    else:
        assert k / 3 < indices.size < 3 * k


def test_selection() -> None:
    wanted = bench_config(
        "selection", "num_elements=4096", "rounds=2", "threshold_steps=2", "steps=2"
    )
    seconds = alone(selection.measure, vars(wanted))
    assert {selection.ADD, selection.REUSED, selection.ANEW, *BASELINES} <= set(seconds)
    result = selection.run(wanted, GivenWorlds({"selection": seconds}))
    only_finite(result)
    assert len(result.records) == len(seconds)
    with pytest.raises(ConfigError, match="steps=3 must be a multiple of threshold_steps=2"):
        bench_config("selection", "threshold_steps=2", "steps=3")


def test_overlap() -> None:
    candidates = [overlap_part.NOTHING, overlap_part.AFTER, overlap_part.NATIVE, overlap_part.POLL,
                  overlap_part.BF16]  # fmt: skip
    part = {"widths": [4, 8, 2], "batch": 2, "algorithm": "ring", "candidates": candidates,
            "rounds": 2, "steps": 1}  # fmt: skip
    found = on_threads(2, overlap_part.measure, part)
    assert list(found["seconds"]) == candidates
    assert all(len(used) == 2 for used in found["processor"].values())
    assert found["backward"] > 0
    others = (overlap_part.THREAD, overlap_part.NATIVE, overlap_part.DDP, overlap_part.DDP_ALONE)
    every = {name: [1.0, 1.0] for name in (*candidates, *others)}
    given = {"seconds": every, "processor": every, "backward": 1.0}
    for network in ("node", "1gbit"):
        worlds = GivenWorlds({"overlap": lambda *_: dict(given)})
        result = overlap.run(bench_config("overlap", f"network={network}"), worlds)
        assert result.checks


def test_sparse() -> None:
    wanted = bench_config("sparse", "hosts=0", "widths=[8,64,4]", "batch=2", "rounds=2", "steps=1",
                    "ddp=false", "sparse={topk:{allreduce:allgather,density:0.1}}")  # fmt: skip
    part = to_mapping(wanted)
    part["sparse"] = {"topk": part["sparse"]["topk"]}
    found = on_threads(2, sparse.measure, part)
    assert found["ranks"] == 2
    assert found["figures"]["topk"]["precision"] == "fp32"
    assert found["figures"]["dense ring"]["bytes_sent"] > 0
    only_finite(sparse.run(wanted, GivenWorlds({"sparse": found})))
    links = {**found, "figures": {name: {**figure, "bytes_sent": 2e6, "bytes_seen": 2.1e6}
                                  for name, figure in found["figures"].items()}}  # fmt: skip
    worlds = GivenWorlds({"sparse": links})
    result = sparse.run(dataclasses.replace(wanted, hosts=2), worlds)
    assert worlds.rates == ["100mbit", "1gbit"]
    assert any("bytes seen" in check.name for check in result.checks)


def test_the_interface_counts_and_one_that_is_not_there_does_not() -> None:
    assert link_bytes("lo") >= 0
    assert link_bytes("no such interface") == 0


def test_sparse_scaling() -> None:
    part = {"num_elements": 2000, "density": 0.05, "steps": 2}
    found = on_threads(2, sparse_scaling_part.measure, part)
    assert {"dense", "oktopk"} <= set(found["variants"])
    assert found["variants"]["dense"]["words"] == pytest.approx(2000, rel=0.01)
    overrides = ("ranks=[2]", "planned_ranks=[16]", "num_elements=2000", "density=0.05")
    wanted = bench_config("sparse_scaling", *overrides)
    result = sparse_scaling.run(wanted, GivenWorlds({"sparse_scaling": found}))
    assert any("from_ranks" in record for record in result.records)
    contribution = sparse_scaling_part.contribution
    both = [set(contribution(2000, 100, rank, 0).indices.tolist()) for rank in (0, 1)]
    assert len(both[0] & both[1]) >= 50


def test_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_part, "_COPY_WORDS", 1 << 10)
    monkeypatch.setattr(kernel_part.Tuner, "tune", lambda *_: None)
    monkeypatch.setattr(kernel_part.peak, "flops_per_second", lambda: 1e9)
    part: Mapping[str, Any] = {"shapes": ["4x5x6:NT"], "loops": False, "threads": 1, "rounds": 1}
    found = alone(kernel_part.measure, part)
    assert found["chosen"] == {"4x5x6:NT": "torch"}  # nothing was measured: torch
    assert {"torch", "tuned", "torch bf16"} <= set(found["rates"]["4x5x6:NT"])
    wanted = bench_config("kernel", "shapes=['4x5x6:NT']")
    result = kernel.run(wanted, GivenWorlds({"kernel": found}))
    only_finite(result)
    assert not result.passed  # torch over itself is no gain


@pytest.mark.parametrize("shape", ["4x5", "4x5x0", "4x5x6:XY", "axbxc"])
def test_a_shape_that_is_none_is_refused(shape: str) -> None:
    with pytest.raises(ConfigError, match=f"shapes: {shape} is no shape"):
        kernel_part.parse(shape)


def test_sparse_curve_says_when_a_variant_is_there() -> None:
    curves = {"dense": [(1.0, 1.0), (2.0, 0.5)], "late": [(3.0, 0.5)], "never": [(3.0, 0.9)]}
    rows = {row["candidate"]: row for row in sparse_curve.curve_records([curves])}
    assert rows["late"]["to_dense_final_loss"] == 1.5
    assert rows["never"]["to_dense_final_loss"] is None
    assert sparse_curve.reached(curves["never"], 0.5) == math.inf


def test_gemm_says_what_nothing_can_exceed() -> None:
    seconds = {"local kernel": [1.0, 1.0], "auto": [1.25, 1.25], "heat, splits 0 and 1": [2.0, 2.0]}
    found = {"seconds": seconds, "peak": 1e12}
    result = gemm.run(bench_config("gemm", "emulated_network=false"), GivenWorlds({"gemm": found}))
    only_finite(result)
    assert [check.value for check in result.checks] == [pytest.approx(0.8), pytest.approx(1.6)]
    assert not any(check.passed for check in result.checks)
    assert sum("nothing can exceed" in record.get("measured", "") for record in result.records) == 2


@pytest.mark.parametrize(("network", "checks"), [("node", 7), ("emulated_1gbit", 12)])
def test_allreduce_has_a_record_a_candidate_and_size(network: str, checks: int) -> None:
    def found(_: int | None, part: Mapping[str, Any]) -> Any:
        return {str(size): {name: [1e-3] for name in part["candidates"]}
                for size in part["sizes_bytes"]}  # fmt: skip

    worlds = GivenWorlds({"allreduce": found})
    result = allreduce.run(bench_config("allreduce", f"network={network}"), worlds)
    only_finite(result)
    assert len(result.checks) == checks
    assert {record["ms"] for record in result.records} == {1.0}
