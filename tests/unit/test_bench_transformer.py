"""`dist-ml bench transformer`: its part at tiny size, and what is made of its figures."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.bench import transformer
from dist_ml.bench.step_candidates import OURS
from dist_ml.bench.transformer import PLAIN, TransformerBench, plain_loop, training
from dist_ml.cli import arguments, compose
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.train.build import build_mesh, build_trainer
from tests.unit.bench_worlds import GivenWorlds, alone


def config(**changes: Any) -> TransformerBench:
    request = arguments.parse([], "transformer", "bench/transformer")
    wanted = from_mapping(TransformerBench, compose.composed(request))
    tiny: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "num_tokens": 6, "batch_size": 4}
    return dataclasses.replace(wanted, **{**tiny, "steps": 1, "rounds": 2, **changes})


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_part_measures_both_and_compares_their_losses(dropout: float) -> None:
    mapping = to_mapping(training(config(dropout=dropout)))
    found = alone(transformer.measure, {"train": mapping, "steps": 1, "rounds": 2})
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {OURS: 2, PLAIN: 2}
    if dropout:
        assert found["loss"] is None
    else:
        assert 0 <= found["loss"] < 1e-4


def test_the_plain_model_is_ours() -> None:
    """Its outputs for the same weights, which it takes under the same names."""
    wanted = training(config())
    trainer = build_trainer(wanted, build_mesh(wanted, Communicator(Loopback())))
    plain = plain_loop(wanted, trainer)._model
    ids = trainer.dataset.train.batch(np.arange(3)).inputs
    torch.testing.assert_close(trainer.outputs(ids), plain(ids))
    for parameter in plain.parameters():
        parameter.data += 0.1
    assert not torch.allclose(trainer.outputs(ids), plain(ids))


@pytest.mark.parametrize(("ours", "passed"), [(1.04, True), (1.06, False)])
def test_the_check_is_the_median_of_the_rounds_own_ratios(ours: float, passed: bool) -> None:
    seconds = {OURS: [ours, 2 * ours, 9.0], PLAIN: [1.0, 2.0, 1.0]}
    worlds = GivenWorlds({"transformer step": {"seconds": seconds, "loss": 1e-6, "parameters": 7}})
    result = transformer.run(config(), worlds)
    over, losses = result.checks
    assert (over.value, over.passed, losses.passed) == (pytest.approx(ours), passed, True)
    assert [record["tokens/s"] for record in result.records][1] == pytest.approx(24.0)
    assert worlds.arguments[0][1] == 1
