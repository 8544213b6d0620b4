"""The measuring parts of the operator benchmarks at tiny size, and their checks on bad data."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench import (
    operator_crossover,
    operator_crossover_part,
    operator_part,
    operator_step,
    operator_words,
)
from dist_ml.bench.candidates import ORDINARY
from dist_ml.bench.configured import to_arguments, with_widths
from dist_ml.bench.form import Check, Result
from dist_ml.bench.message_collectives import in_messages
from dist_ml.bench.operator_formulas import crossover_batch, textbook_words
from dist_ml.bench.operator_part import DTENSOR, DTENSOR_SHARDED, ONE_RANK, PRODUCTS, ours
from dist_ml.bench.tensor_parallel import plain_mlp, sgd_step
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.operator_parallel import collectives
from dist_ml.operator_parallel.grid import Sides
from tests.thread_world import run_ranks
from tests.unit.bench_worlds import GivenWorlds, bench_config, failed, on_threads, only_finite

LAYOUTS = ("1d", "1d_sharded", "2d", "2.5d", "3d")


# --- collectives made of messages
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_collectives_of_messages_are_those_of_the_transport(size: int) -> None:
    """Sums, shares and empty shares; every element that passes is counted, on any group."""

    def body(comm: Communicator) -> tuple[list[np.ndarray], int, bool]:
        own, seen = in_messages(comm)
        results = []
        for each in (comm, own):
            pair = each.split(each.rank % 2, each.rank)
            assert pair is not None
            x = np.arange(7.0) * (comm.rank + 1)
            largest, shares = x.copy(), [3, 0, 4, 0, 0][:size]
            shares[-1] += 7 - sum(shares)
            kept, everything = np.empty(shares[comm.rank]), np.empty(7)
            each.allreduce(largest, "max")
            each.reduce_scatter(x, kept, counts=shares)
            each.allgather(kept, everything, shares)
            pair.allreduce(x)
            results.append([largest, kept, everything, x])
        for theirs, ours_ in zip(*results, strict=True):
            np.testing.assert_array_equal(ours_, theirs)
        return results[1], seen.sent, seen.whole

    found = run_ranks(size, body)
    groups = [len(range(parity, size, 2)) for parity in (0, 1)]
    pairs = sum(2 * 7 * (ranks - 1) for ranks in groups if ranks)
    assert sum(sent for _, sent, _ in found) == 4 * 7 * (size - 1) + pairs
    assert all(whole for _, _, whole in found)


# --- words
MODELS = [
    {"widths": (24,) * 5, "batch": 48, "even": True},
    {"widths": (7, 9, 5, 11), "batch": 5, "even": False},
]


def words(size: int) -> list[Any]:
    records: list[Any] = on_threads(
        size, operator_words.measure, {"layouts": LAYOUTS, "models": MODELS}
    )
    return records


def test_words_are_stated_seen_and_the_textbooks() -> None:
    wanted = bench_config("operator_words", "worlds=[2,4]")
    measured = {size: words(size) for size in (2, 4)}
    worlds = GivenWorlds({"operator_words": lambda ranks, _: measured[ranks]})
    result = operator_words.run(wanted, worlds)
    only_finite(result)
    assert failed(result.checks) == []
    assert len(result.checks) == 2 * len(LAYOUTS) + 2
    assert len(result.records) == 2 * len(LAYOUTS) * 3  # the textbook's where sizes divide
    assert all(record["seen backward"] > 0 for record in measured[4])


def test_an_exchange_that_is_not_stated_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum made twice: seen twice, stated once, and the results tell, too."""
    summed = collectives.summed

    def twice(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
        summed(x, comm)
        return summed(x, comm)

    monkeypatch.setattr(collectives, "summed", twice)
    assert "words seen unlike stated, 1d" in failed(operator_words.word_checks(words(2), LAYOUTS))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"unlike seen": 0.03}, "words seen unlike stated, 1d"),
        ({"unlike seen": math.nan}, "words seen unlike stated, 1d"),
        ({"textbook forward": 90.0}, "words stated unlike the textbook's, 1d"),
        ({"textbook backward": 90.0}, "words stated unlike the textbook's, 1d"),
        ({"whole": False}, "passes in which something moved unseen"),
        ({"difference": 1e-3}, "difference of results to those of MPI's collectives"),
    ],
)
def test_bad_words_fail(change: dict[str, Any], name: str) -> None:
    good: dict[str, Any] = {
        "layout": "1d", "unlike seen": 0.0, "whole": True, "difference": 0.0,
        "textbook forward": 100.0, "forward without biases": 100,
        "textbook backward": 100.0, "backward without biases": 100,
    }  # fmt: skip
    assert failed(operator_words.word_checks([good], ("1d",))) == []
    assert failed(operator_words.word_checks([{**good, **change}], ("1d",))) == [name]


def test_the_textbooks_forms() -> None:
    """Two layers of 8 on four ranks, 16 samples: by hand."""
    bm, mm = 16 * 8, 8 * 8
    assert textbook_words("1d", Sides(first=4), 2, 16, 8) == (2 * 3 / 4 * bm, 0)
    assert textbook_words("1d_sharded", Sides(first=4), 2, 16, 8) == (
        3 / 4 * bm,
        3 / 4 * bm,
    )
    grid = Sides(rows=2, first=2)
    assert textbook_words("2d", grid, 2, 16, 8) == (
        (2 * bm + 2 * mm - bm) / 4,
        (3 * bm + 4 * mm - 2 * bm - mm) / 4,
    )
    assert crossover_batch(7, 4) == 6


# --- the step
def tiny() -> dict[str, Any]:
    train = with_widths(bench_config("operator").train, (8,) * 5, 6)
    return {"train": to_arguments(train), "layouts": ("1d", "1d_sharded"), "dtensor": False,
            "num_samples": 18, "num_losses": 4, "steps": 1, "rounds": 2}  # fmt: skip


def test_candidates_learn_the_same() -> None:
    found = on_threads(2, operator_part.measure, tiny())
    names = {ours("1d"), ours("1d_sharded"), ONE_RANK}
    assert set(found["losses"]) == names
    rest = {PRODUCTS, *operator_part.ALLREDUCES.values()}
    assert set(found["seconds"]) == names | rest
    for losses in found["losses"].values():
        assert losses == pytest.approx(found["losses"][ONE_RANK], rel=1e-5)
        assert losses[-1] < losses[0]
    assert ORDINARY in operator_part.ALLREDUCES


def test_torchs_loop_learns_as_ours() -> None:
    """The model and the loop that DTensor shares, whole, against our trainer on one rank."""
    part = {**tiny(), "layouts": ()}

    def body(comm: Communicator) -> tuple[list[float], list[float]]:
        train = operator_part.from_arguments(part["train"])
        trainer = operator_part.build_trainer(train, operator_part.build_mesh(train, comm))
        model = plain_mlp((8,) * 5, trainer.model.state_dict())
        step = sgd_step(model, train.optimizer.lr, operator_part._batches(trainer))
        own = operator_part._our_step(trainer)
        return [own() for _ in range(4)], [step() for _ in range(4)]

    ((losses, torchs),) = run_ranks(1, body)
    assert torchs == pytest.approx(losses, rel=1e-5)


STEP: dict[str, list[float]] = {
    ours("1d"): [1.0, 1.1, 1.0],
    ours("1d_sharded"): [1.0, 1.0, 1.0],
    DTENSOR: [3.0, 3.0, 3.0],
    DTENSOR_SHARDED: [1.6, 1.6, 1.6],
    ONE_RANK: [1.8, 1.9, 1.8],
    PRODUCTS: [0.9, 0.9, 0.9],
}
LOSSES = {name: [3.0, 2.0] for name in (ours("1d"), DTENSOR, ONE_RANK)}


@pytest.mark.parametrize(
    ("seconds", "losses", "names"),
    [
        ({}, {}, []),
        ({DTENSOR_SHARDED: [1.2] * 3}, {}, ["step over DTensor on gloo, 2 ranks, 1d"]),
        ({ONE_RANK: [1.6] * 3}, {}, ["speed-up over one rank on one core"]),
        ({}, {DTENSOR: [3.0, 2.1]}, ["relative difference of losses to one rank's"]),
        ({}, {DTENSOR: [3.0, math.nan]}, ["relative difference of losses to one rank's"]),
    ],
)
def test_step_checks(seconds: Any, losses: Any, names: list[str]) -> None:
    found = {"seconds": {**STEP, **seconds}, "losses": {**LOSSES, **losses}}
    worlds = GivenWorlds({"operator": found})
    result = operator_step.run(bench_config("operator"), worlds)
    assert failed(result.checks) == names
    assert {record["candidate"] for record in result.records} == set(STEP)
    ((_, ranks, part),) = worlds.arguments
    assert (ranks, part["dtensor"]) == (2, True)


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_layers=3 must be even"):
        bench_config("operator", "num_layers=3")
    with pytest.raises(ConfigError, match=r"layouts=\['2d'\] must hold 1d"):
        bench_config("operator", "layouts=[2d]")
    with pytest.raises(ConfigError, match="8 ranks make no square grid"):
        bench_config("operator_crossover", "planned_ranks=[8]")
    with pytest.raises(ConfigError, match="num_layers=1 must be even"):
        bench_config("operator_crossover", "num_layers=1")


# --- the crossover
CROSSOVER = ("width=8", "batches=[4,32]", "rounds=2", "planned_width=512")


@functools.cache
def crossover(*overrides: str) -> tuple[Result, dict[str, Any]]:
    def found(ranks: int | None, part: Any) -> Any:
        measured.update(on_threads(ranks or 4, operator_crossover_part.measure, part))
        return measured

    measured: dict[str, Any] = {}
    wanted = bench_config("operator_crossover", *CROSSOVER, *overrides)
    return operator_crossover.run(wanted, GivenWorlds({"operator_crossover": found})), measured


def test_crossover() -> None:
    result, _ = crossover()
    only_finite(result)
    assert failed(result.checks) == []
    planned = [record for record in result.records if "planned ranks" in record]
    assert [record["planned ranks"] for record in planned] == [4, 16, 64]
    few, many = [record for record in result.records if "batch" in record]
    assert few["2d words over 1d"] > 1 > many["2d words over 1d"]


def test_a_crossover_elsewhere_and_words_that_are_not_planned_fail() -> None:
    result, _ = crossover()
    planned = [record for record in result.records if "planned ranks" in record]
    measured = [record for record in result.records if "batch" in record]

    def names(plan: dict[str, Any], step: dict[str, Any]) -> list[str]:
        return failed(
            operator_crossover.checks_of(
                [{**planned[0], **plan}, *planned[1:]], [{**measured[0], **step}, *measured[1:]]
            )
        )

    assert names({}, {}) == []
    assert names({"over theory": 1.03}, {}) == ["planned crossover over theory's, most"]
    assert names({"over theory": 0.97}, {}) == ["planned crossover over theory's, least"]
    step = {"1d words": 1.1 * measured[0]["1d words"]}
    assert names({}, step) == ["words of a step unlike planned"]


def test_the_crossover_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra")
    file = tmp_path / "x.png"
    crossover(f"plot={file}")
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert file.stat().st_size < 150_000


def test_links_are_made_where_a_rate_is_given() -> None:
    _, found = crossover()
    worlds = GivenWorlds({"operator_crossover": found})
    wanted = dataclasses.replace(bench_config("operator_crossover", *CROSSOVER), rate="1gbit")
    result = operator_crossover.run(wanted, worlds)
    assert all(isinstance(check, Check) for check in result.checks)
