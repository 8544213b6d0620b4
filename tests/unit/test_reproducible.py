"""reproduce=bitwise: the same losses and weights on any mesh, to the last bit."""

import dataclasses
import re
from typing import Any

import pytest
import test_own_training
import torch
from image_world import on_digits
from pipeline_world import Trained, on_mesh, settings, train
from test_own_training import SAMPLES, blocks
from text_world import text_config
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.data_parallel.tree_exchange import TreeExchange
from dist_ml.errors import ConfigError
from dist_ml.train.evaluator import SplitShare
from dist_ml.train.own import Own

SHARDS = ReproduceConfig(12)
# Batches of 13, 13 and 4 samples, with dropout, in single precision; each step is clipped.
USUAL: dict[str, Any] = {"precision": "fp32", "clip_norm": 0.2, "reproduce": SHARDS}


def assert_same_bits(found: Trained, expected: Trained) -> None:
    assert found[:-1] == expected[:-1]
    assert found.weights is not None
    assert expected.weights is not None
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name], tensor), name


def trained(config: TrainConfig, data: int, pipeline: int, **choices: Any) -> Trained:
    chosen = on_mesh(config, data, pipeline, **choices)
    return run_ranks(data * pipeline, lambda comm: train(comm, chosen))[0]


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained(settings(**USUAL), 1, 1)


@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
def test_any_number_of_replicas(ranks: int, alone: Trained) -> None:
    assert_same_bits(trained(settings(**USUAL), ranks, 1), alone)


@pytest.mark.parametrize(
    ("data", "pipeline", "choices"),
    [
        (1, 2, {}),
        (2, 2, {"name": "gpipe", "recompute": True}),
        (2, 2, {"name": "zb_h2", "validate": "after"}),
        (1, 2, {"name": "zb_v"}),
        (1, 3, {"name": "interleaved"}),
    ],
)
def test_any_pipeline(data: int, pipeline: int, choices: dict[str, Any], alone: Trained) -> None:
    assert_same_bits(trained(settings(**USUAL), data, pipeline, **choices), alone)


@pytest.mark.parametrize("model", [text_config, on_digits])
def test_models_of_tokens_and_of_images(model: Any) -> None:
    config = model(**{**USUAL, "reproduce": ReproduceConfig(6)})
    expected = trained(config, 1, 1)
    assert_same_bits(trained(config, 3, 1), expected)
    assert_same_bits(trained(config, 1, 2, name="zb_v"), expected)


def test_models_of_a_users_own_and_what_they_may_not_keep() -> None:
    usual = {**USUAL, "reproduce": ReproduceConfig(4)}
    config = dataclasses.replace(test_own_training.CONFIG, **usual)
    losses, weights = test_own_training.train(config, Own(blocks(), SAMPLES), 1)
    for ranks, stages in ((4, 1), (4, 2)):
        chosen = dataclasses.replace(config, mesh=MeshConfig(None, stages, 1))
        found = test_own_training.train(chosen, Own(blocks(), SAMPLES), ranks)
        assert found[0] == losses
        assert all(map(torch.equal, found[1], weights))
    with pytest.raises(ConfigError, match="running_mean is kept from batch to batch"):
        test_own_training.train(config, Own(blocks(normed=True), SAMPLES), 1)


def test_without_it_the_bits_differ() -> None:
    config = settings(**{**USUAL, "reproduce": ReproduceConfig()})
    assert trained(config, 2, 1).losses != trained(config, 1, 1).losses


def test_sums_in_another_order_would_be_seen(
    alone: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank_by_rank(self: TreeExchange, sums: torch.Tensor, total: torch.Tensor) -> None:
        total.copy_(sums.sum(0))
        self._comm.allreduce(total)

    monkeypatch.setattr(TreeExchange, "__call__", rank_by_rank)
    assert trained(settings(**USUAL), 6, 1).losses != alone.losses


def test_shards_are_the_same_samples_on_any_number_of_ranks() -> None:
    sampler = GlobalSampler(30, 13, seed=3, num_shards=12)
    for step in range(3):
        expected = [ids.tolist() for ids in sampler.microbatches(1, step, 0, 1, 12)]
        assert [number for ids in expected for number in ids] == sampler.batch(1, step).tolist()
        for size in (2, 3, 4, 6, 12):
            shares = [sampler.microbatches(1, step, r, size, 12 // size) for r in range(size)]
            assert [ids.tolist() for share in shares for ids in share] == expected


def test_evaluations_are_the_same_on_ranks_that_do_not_divide_the_shards_too() -> None:
    values = torch.rand(37, dtype=torch.float64)

    def summed(comm: Communicator) -> float:
        share = SplitShare(len(values), 4, comm, 1, num_shards=6)
        for shard, piece in share.pieces:
            share.add(shard, [values[piece.slice].sum()])
        return float(share.total(comm))

    found = {run_ranks(size, summed)[-1] for size in (1, 2, 3, 4, 5, 6, 7)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(values.sum()))


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ((5, 1, 1), {}, "shards=12 can't be dealt evenly to mesh.data=5 replicas"),
        ((1, 1, 2), {}, "is not built for mesh.operator=2"),
        ((2, 1, 1), {"accumulation": 2}, "accumulation=2 has no effect with reproduce.shards=12"),
        ((1, 2, 1), {"pipeline": {"microbatches": 4}}, "pipeline.microbatches=4 has no effect"),
        ((1, 2, 1), {"pipeline": {"name": "chimera"}}, "pipeline.name=chimera has two copies"),
        ((1, 2, 1), {"pipeline": {"name": "pipedream_2bw"}, "clip_norm": None}, "of two steps"),
        ((1, 2, 1), {"precision": "bf16"}, "precision=bf16 rounds what goes from layer to layer"),
        ((1, 1, 1), {"kernel": "auto"}, "kernel=auto takes the kernel that was fastest"),
        ((1, 1, 1), {"allreduce": {"name": "ring"}}, "allreduce.* has no effect with reproduce"),
        ((1, 1, 1), {"data_parallel": {"name": "zero1"}}, "no effect with data_parallel=zero1"),
        ((1, 1, 1), {"data_parallel": {"name": "periodic"}}, "no effect with data_parallel=per"),
        (
            (1, 1, 1),
            {"sparse": {"allreduce": "gtopk"}},
            "sparse=gtopk, which sum in an order of th",
        ),
    ],
)
def test_refused(mesh: tuple[int, int, int], changes: dict[str, Any], words: str) -> None:
    groups = {key: value for key, value in changes.items() if isinstance(value, dict)}
    config = settings(**{**USUAL, **{k: v for k, v in changes.items() if k not in groups}})
    for key, values in groups.items():
        group = dataclasses.replace(getattr(config, key), **values)
        config = dataclasses.replace(config, **{key: group})
    config = dataclasses.replace(config, mesh=MeshConfig(*mesh))
    with pytest.raises(ConfigError, match=re.escape(words)):
        run_ranks(mesh[0] * mesh[1] * mesh[2], lambda comm: train(comm, config))


def test_more_shards_than_samples_and_parameters_of_several_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="shards=14 cuts a batch of batch_size=13"):
        settings(**{**USUAL, "reproduce": ReproduceConfig(14)})
    tied = text_config(**USUAL, model={"tied": True})
    for choices in ({}, {"name": "zb_v"}):  # on two ranks, and on the same
        with pytest.raises(ConfigError, match="weight is used by several stages"):
            trained(tied, 1, 2, **choices)
