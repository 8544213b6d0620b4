"""`dist-ml bench models`: its parts at tiny size, and what is made of their figures."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench import cnn, models, transformer
from dist_ml.bench.bare_loop import BareLoop
from dist_ml.bench.models import ModelsBench
from dist_ml.bench.step_candidates import OURS
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.convert import to_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.trainer import Trainer
from tests.unit.bench_worlds import GivenWorlds, alone, bench_config

CNN: dict[str, Any] = {
    "shape": (2, 5, 4),
    "num_outputs": 3,
    "channels": (4, 8),
    "groups": 2,
    "num_samples": 12,
    "batch_size": 5,
}
TRANSFORMER: dict[str, Any] = {
    "width": 8,
    "depth": 2,
    "heads": 2,
    "num_tokens": 6,
    "batch_size": 4,
}


def config(*overrides: str, **changes: Any) -> ModelsBench:
    wanted: ModelsBench = bench_config("models", *overrides)
    tiny = {"steps": 1, "rounds": 2}
    return dataclasses.replace(
        wanted,
        cnn=dataclasses.replace(wanted.cnn, **CNN, **tiny),
        transformer=dataclasses.replace(wanted.transformer, **TRANSFORMER, **tiny, **changes),
    )


def part_of(wanted: cnn.CnnBench) -> dict[str, Any]:
    """The arguments of the CNN's part."""
    worlds = GivenWorlds({"cnn step": {"seconds": {OURS: [1.0], cnn.FIRST: [1.0]}}})
    with pytest.raises(KeyError, match=cnn.LAST):
        cnn.run(wanted, worlds)
    return worlds.arguments[0][2]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_transformers_part_measures_both_and_compares_their_losses(dropout: float) -> None:
    mapping = to_mapping(transformer.training(config(dropout=dropout).transformer))
    found = alone(transformer.measure, {"train": mapping, "steps": 1, "rounds": 2})
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {
        OURS: 2,
        transformer.PLAIN: 2,
    }
    if dropout:
        assert found["loss"] is None
    else:
        assert 0 <= found["loss"] < 1e-4


def test_the_cnns_part_measures_all_three_and_compares_their_losses() -> None:
    found = alone(cnn.measure, part_of(config().cnn))
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {
        OURS: 2,
        cnn.FIRST: 2,
        cnn.LAST: 2,
    }
    assert 0 <= found["loss"] < 1e-4


def trainer_of(train: TrainConfig) -> Trainer:
    return build_trainer(train, build_mesh(train, Communicator(Loopback())))


def assert_same_model(trainer: Trainer, loop: BareLoop) -> None:
    """Its outputs for the same weights, which it takes under the same names."""
    plain = loop.model
    inputs = trainer.dataset.train.batch(np.arange(3)).inputs
    torch.testing.assert_close(trainer.outputs(inputs), plain(inputs))
    for parameter in plain.parameters():
        parameter.data += 0.1
    assert not torch.allclose(trainer.outputs(inputs), plain(inputs))


def test_the_plain_transformer_is_ours() -> None:
    wanted = transformer.training(config().transformer)
    trainer = trainer_of(wanted)
    assert_same_model(trainer, transformer.plain_loop(wanted, trainer))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_plain_cnn_is_ours(channels_last: bool, tmp_path: Path) -> None:
    part = part_of(config().cnn)
    wanted = cnn.training(config().cnn)
    wanted = dataclasses.replace(wanted, data=cnn.save_images(part, tmp_path))
    trainer = trainer_of(wanted)
    assert_same_model(trainer, cnn.plain_loop(wanted, trainer, channels_last))


@pytest.mark.parametrize(("ours", "passed"), [(1.04, True), (1.06, False)])
def test_the_checks_are_medians_of_the_rounds_own_ratios(ours: float, passed: bool) -> None:
    seconds = {OURS: [ours, 2 * ours, 9.0], transformer.PLAIN: [1.0, 2.0, 1.0]}
    slower = {cnn.FIRST: [3.0, 5.0, 4.0], cnn.LAST: seconds[transformer.PLAIN], OURS: seconds[OURS]}
    worlds = GivenWorlds(
        {
            "transformer step": {"seconds": seconds, "loss": 1e-6, "parameters": 7},
            "cnn step": {"seconds": slower, "loss": 1e-3, "parameters": 5},
        }
    )
    result = models.run(config(), worlds)
    verdicts = {check.name.split(",")[0]: (check.value, check.passed) for check in result.checks}
    assert verdicts == {
        "cnn step over plain torch": (pytest.approx(ours), passed),
        "relative difference of a cnn's losses": (1e-3, False),
        "transformer step over plain torch": (pytest.approx(ours), passed),
        "relative difference of a transformer's losses": (1e-6, True),
    }
    assert [row["images/s"] for row in result.records if "images/s" in row][1] == 5 / 1.0
    assert [row["tokens/s"] for row in result.records if "tokens/s" in row][1] == 24 / 1.0
    assert [ranks for _, ranks, _ in worlds.arguments] == [1, 1]


def test_only_the_chosen_models_are_compared() -> None:
    seconds = {OURS: [1.0], cnn.FIRST: [1.0], cnn.LAST: [1.0]}
    worlds = GivenWorlds({"cnn step": {"seconds": seconds, "loss": 0.0, "parameters": 5}})
    assert len(models.run(config("models=[cnn]"), worlds).checks) == 2
    for wrong in ("[cnm]", "[]"):
        with pytest.raises(ConfigError, match="use some of cnn, transformer"):
            config(f"models={wrong}")
