"""`dist-ml bench validation_loss`: its part at tiny size, and what is made of its figures."""

import dataclasses
from typing import Any

import pytest

from dist_ml.bench import validation_loss
from dist_ml.bench.form import Result
from dist_ml.bench.transformer import PLAIN, training
from dist_ml.bench.validation_loss import ValidationLossBench, measure
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.train import MeshConfig
from dist_ml.errors import ConfigError
from tests.configurations import mapping
from tests.unit.bench_worlds import GivenWorlds, on_threads


def config(*overrides: str) -> ValidationLossBench:
    composed = mapping(*overrides, name="bench/validation_loss")
    wanted = from_mapping(ValidationLossBench, composed)
    tiny: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "num_tokens": 6, "batch_size": 4}
    return dataclasses.replace(wanted, **tiny, num_test=7, steps=5, dropout=0.0)


def part(mesh: tuple[int, int, int], plain: bool, steps: int = 5) -> dict[str, float]:
    train = training(config())
    data = dataclasses.replace(train.data, num_test=7)
    train = dataclasses.replace(train, data=data, mesh=MeshConfig(*mesh))
    given = {"train": to_mapping(train), "steps": steps, "plain": plain}
    found: dict[str, float] = on_threads(mesh[0] * mesh[1] * mesh[2], measure, given)
    return found


def test_the_part_trains_both_from_the_same_weights_on_the_same_windows() -> None:
    """Without dropout their losses are the same; test windows don't fill their last batch."""
    plain = part((1, 1, 1), plain=True)
    for mesh in ((1, 1, 1), (1, 2, 2)):
        assert part(mesh, plain=False) == pytest.approx(plain, rel=1e-5)
    assert plain["test loss"] < part((1, 1, 1), plain=True, steps=1)["test loss"] * 0.999


def result(ours: float, on_mesh: float) -> tuple[Result, GivenWorlds]:
    def losses(ranks: int, given: dict[str, Any]) -> dict[str, float]:
        tested = 2.0 if given["plain"] else ours if ranks == 1 else on_mesh
        return {"train loss": 1.0, "test loss": tested}

    worlds = GivenWorlds({"validation loss": losses})
    return validation_loss.run(config("meshes=[[1,2,2]]"), worlds), worlds


@pytest.mark.parametrize(
    ("ours", "on_mesh", "passed"),
    [(2.01, 1.99, [True, True]), (2.03, 2.0, [False, True]), (2.0, 1.97, [True, False])],
)
def test_each_is_held_against_the_plain_loop(
    ours: float, on_mesh: float, passed: list[bool]
) -> None:
    found, worlds = result(ours, on_mesh)
    assert [check.passed for check in found.checks] == passed
    assert [check.name for check in found.checks] == [
        "test loss unlike plain torch's, ours on 1 x 1 x 1 ranks",
        "test loss unlike plain torch's, ours on 1 x 2 x 2 ranks",
    ]
    assert [(row["trained by"], row["test loss"]) for row in found.records] == [
        (PLAIN, 2.0),
        ("ours on 1 x 1 x 1 ranks", ours),
        ("ours on 1 x 2 x 2 ranks", on_mesh),
    ]
    assert [ranks for _, ranks, _ in worlds.arguments] == [1, 1, 4]
    assert {given["train"]["data"]["num_test"] for *_, given in worlds.arguments} == {7}


def test_a_mesh_has_three_sizes() -> None:
    with pytest.raises(ConfigError, match=r"meshes has \[2, 2\]; each is \[data, pipeline"):
        config("meshes=[[2,2]]")
