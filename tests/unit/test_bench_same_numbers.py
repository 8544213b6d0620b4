"""`dist-ml bench same_numbers`: small runs on threads, and its checks on bad figures."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dist_ml.bench import same_numbers
from dist_ml.bench.same_numbers import SameNumbersBench, runs_of
from dist_ml.bench.same_numbers_part import Run, measure
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import GivenWorlds, bench_config, on_threads

SMALL = (
    "train.model.hidden=[7,6,8]", "train.data.num_train=17", "train.batch_size=7", "train.epochs=1",
    "steps=3", "meshes=[[2,1,1],[1,2,1],[2,2,1],[1,1,2]]",
    "schedules=[one_f_one_b,zb_v,pipedream_2bw]",
)  # fmt: skip


def config(*overrides: str) -> SameNumbersBench:
    wanted: SameNumbersBench = bench_config("same_numbers", *overrides)
    return wanted


def trained(ranks: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By the benchmark's part, on threads."""
    found: list[dict[str, Any]] = on_threads(ranks, measure, {"precisions": ["fp64"], **given})
    return found


def test_runs_on_threads_have_the_numbers_of_one_rank() -> None:
    worlds = GivenWorlds({"same_numbers": trained})
    result = same_numbers.run(config(*SMALL), worlds)
    assert [str(check) for check in result.checks if not check.passed] == []
    assert [ranks for _, ranks, _ in worlds.arguments] == [1, 1, 1, 2, 4]
    rows = [(row["mesh"], row["schedule"], row["exchange"]) for row in result.records]
    assert rows == [
        ("2x1x1", "-", "dense"),
        *(("2x1x1", "-", exchange) for exchange in ("ring", "zero1", "zero2")),
        *(("1x2x1", schedule, "dense") for schedule in ("one_f_one_b", "zb_v", "pipedream_2bw")),
        *(("1x1x2", "-", "dense") for _ in config().layouts),
        *(("2x2x1", schedule, "dense") for schedule in ("one_f_one_b", "zb_v", "pipedream_2bw")),
        ("2x2x1", "one_f_one_b", "ring"),
        ("2x2x1", "zb_v", "zero1"),
        ("2x2x1", "one_f_one_b", "zero2"),
    ]
    (delayed,) = worlds.arguments[1][2]["runs"]
    assert (delayed.schedule, delayed.is_loop) == ("pipedream_2bw", True)
    assert 0 < max(row["weights fp32"] for row in result.records) < 1e-6
    shared = [row["layout"] for row in result.records if row["mesh"] == "1x1x2"]
    assert shared == [*config().layouts]


def test_losses_alone_may_be_compared() -> None:
    worlds = GivenWorlds({"same_numbers": trained})
    result = same_numbers.run(config(*SMALL, "weights=false", "meshes=[[1,1,2]]"), worlds)
    assert not any("weights fp32" in row for row in result.records)
    assert [check.name for check in result.checks if not check.passed] == []


def test_all_that_should_be_run_is() -> None:
    whole = config()
    assert max(math.prod(mesh) for mesh in whole.meshes) == 8
    taken = {run.schedule for run in runs_of(whole, (1, 8, 1))}
    assert taken == set(whole.schedules)
    assert "chimera" not in {run.schedule for run in runs_of(whole, (1, 7, 1))}
    assert "pipedream_2bw" not in {run.schedule for run in runs_of(whole, (2, 2, 2))}


ALONE = {"losses": [2.0, 1.0], "weights": {"a": [4.0, -8.0], "b": [0.5]}}


def shifted(by: float, *place: Any) -> dict[str, Any]:
    """`ALONE` with one number changed by a part of itself."""
    found: Any = copy.deepcopy(ALONE)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] *= 1 + by
    return dict(found)


def failed(fp32: dict[str, Any], fp64: dict[str, Any], dropout: float = 0.01) -> list[str]:
    """The last word of the checks that fail with one such run on two ranks among good ones, where
    dropout moves the losses by so much.
    """

    def found(ranks: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        plain = given["train"]["model"]["dropout"] == 0
        good = dict.fromkeys(("fp32", "fp64"), shifted(dropout, "losses", 0) if plain else ALONE)
        runs: list[dict[str, Any]] = [good for _ in given["runs"]]
        if ranks == 2:
            runs[-1] = {"fp32": fp32, "fp64": fp64}
        return runs

    result = same_numbers.run(config(*SMALL), GivenWorlds({"same_numbers": found}))
    return [check.name.split(" ")[-1] for check in result.checks if not check.passed]


@pytest.mark.parametrize(
    ("fp32", "fp64", "names"),
    [
        (shifted(1e-5, "losses", 1), shifted(9e-11, "losses", 0), []),
        (shifted(3e-5, "losses", 1), ALONE, ["fp32"]),
        (shifted(3e-5, "weights", "b", 0), shifted(2e-10, "weights", "a", 1), ["fp32", "fp64"]),
        (ALONE, shifted(2e-10, "losses", 0), ["fp64"]),
        (shifted(math.nan, "losses", 0), ALONE, ["fp32"]),
        (ALONE, shifted(math.nan, "weights", "b", 0), ["fp64"]),
    ],
    ids=["good", "loss", "weights", "fp64 loss", "nan loss", "nan weight"],
)
def test_checks(fp32: dict[str, Any], fp64: dict[str, Any], names: list[str]) -> None:
    assert failed(fp32, fp64) == names


def test_dropout_that_changes_nothing_is_not_on() -> None:
    assert failed(ALONE, ALONE, dropout=1e-4) == ["process"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["meshes=[[2,2]]"], r"meshes has \[2, 2\]; each is \[data, pipeline, operator\]"),
        (["meshes=[[2,0,1]]"], "1 or more"),
        (["meshes=[]"], "at least one"),
        (["precisions=[bf16]"], "precisions=bf16 is not one of fp32, fp64"),
        (["schedules=[gpip]"], "did you mean gpipe"),
        (["exchanges=[daso]"], "exchanges=daso is not one of"),
        (["layouts=[4d]"], "layouts=4d is not one of 1d, 1d_sharded, 2d, 2.5d, 3d"),
        (["steps=0"], "steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SMALL, "steps=4"], "steps=4 is more than the run has: 1 epochs of 3 steps"),
    ],
)
def test_what_cannot_be_run_is_told(overrides: list[str], message: str) -> None:
    run: Callable[..., Any] = same_numbers.run
    with pytest.raises(ConfigError, match=message):
        run(config(*overrides), GivenWorlds({"same_numbers": trained}))


def test_a_run_is_told_to_the_last_bit() -> None:
    given = {"train": same_numbers.to_arguments(config(*SMALL).train), "steps": 2, "weights": True,
             "runs": [Run((1, 1, 1), None, "dense")] * 2}  # fmt: skip
    first, second = trained(1, given)
    assert first == second
    assert len(first["fp64"]["losses"]) == 2
    assert [len(values) for values in first["fp64"]["weights"].values()][:2] == [7 * 13, 7]
