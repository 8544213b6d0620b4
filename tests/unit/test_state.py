"""A trainer's state in named boxes: saved on one mesh, loaded on another, in worlds of threads."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from text_world import text_config
from thread_world import run_ranks
from train_worlds import changed

from dist_ml.checkpoint.reader import newest
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.errors import DataError
from dist_ml.placement import Region, whole
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.load_state import load
from dist_ml.train.state import saved_numbers, saved_pieces
from dist_ml.train.trainer import Trainer

STEPS = 7  # of 9


def trainer_of(config: TrainConfig, world: Communicator) -> Trainer:
    return build_trainer(config, build_mesh(config, world))


def train(trainer: Trainer, stop: int) -> list[float]:
    return [step.loss for step in trainer.next_steps(stop - trainer.num_steps)]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.parameters.values()]


def saved(
    folder: Path, config: TrainConfig, ranks: int, at: int, nodes: list[int] | None = None
) -> list[Any]:
    """Train so many steps, save, where the next one may have begun, and train on: losses from
    there, and the weights of each rank.
    """

    def body(world: Communicator) -> tuple[list[float], list[torch.Tensor]]:
        trainer = trainer_of(config, world)
        steps = trainer.next_steps(STEPS)
        for _ in range(at):
            next(steps)
        header = {"ranks": saved_numbers(trainer)}
        save(folder, at, saved_pieces(trainer), header, trainer.mesh.world)
        losses = [step.loss for step in steps]
        trainer.close()
        return losses, weights(trainer)

    return run_ranks(ranks, body, nodes)


def resumed(folder: Path, config: TrainConfig, ranks: int, own: bool) -> list[Any]:
    def body(world: Communicator) -> tuple[list[float], list[torch.Tensor]]:
        trainer = trainer_of(config, world)
        checkpoint = newest(folder, trainer.mesh.world)
        assert checkpoint is not None
        load(trainer, checkpoint, checkpoint.header["ranks"], own)
        assert trainer.num_steps == checkpoint.step
        losses = train(trainer, STEPS)
        trainer.close()
        return losses, weights(trainer)

    return run_ranks(ranks, body)


SPARSE = {"allreduce": "oktopk", "density": 0.2, "dense_below": 10, "momentum": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "adamw": {"optimizer": {"name": "adamw", "momentum": 0.0}},
    "oktopk": {"sparse": SPARSE, "optimizer": {"momentum": 0.0}},
    "sampled": {"sparse": {**SPARSE, "selection": "sampled"}, "optimizer": {"momentum": 0.0}},
    "zero1": {"data_parallel": {"name": "zero1"}},
    "zero2": {"data_parallel": {"name": "zero2"}, "optimizer": {"name": "adamw", "momentum": 0.0}},
    "periodic": {"data_parallel": {"name": "periodic", "period": 2}},
    "2bw": {
        "mesh": {"data": 1, "pipeline": 3}, "pipeline": {"name": "pipedream_2bw"},
        "model": {"hidden": (6, 5, 7)},
    },
    "daso": {"data_parallel": {"name": "daso", "period": 2, "warmup_steps": 1}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 4])
def test_on_the_same_mesh_it_goes_on_to_the_last_bit(kind: str, at: int, tmp_path: Path) -> None:
    config = changed(epochs=3, **KINDS[kind])
    expected = saved(tmp_path, config, 3, at)
    found = resumed(tmp_path, config, 3, own=True)
    for (losses, tensors), (told, others) in zip(expected, found, strict=True):
        assert told == losses
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


# data, pipeline, operator, and what else is chosen
MESHES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "alone": ((1, 1, 1), {}),
    "3 data": ((3, 1, 1), {"data_parallel": {"name": "zero1"}}),
    "4 data": ((4, 1, 1), {"data_parallel": {"name": "zero2"}}),
    "1x4 zb_v": ((1, 4, 1), {"pipeline": {"name": "zb_v"}}),
    "2x2 chimera": ((2, 2, 1), {"pipeline": {"name": "chimera"}, **KINDS["zero1"]}),
    "1x1x3": ((1, 1, 3), {}),
    "1x1x4 2d": ((1, 1, 4), {"operator_parallel": {"layout": "2d"}}),
    "2x1x2": ((2, 1, 2), {"data_parallel": {"name": "zero1"}}),
    "1x1x4 2.5d": ((1, 1, 4), {"operator_parallel": {"layout": "2.5d", "grid": (1, 2, 2)}}),
    "2x2x2": ((2, 2, 2), {"data_parallel": {"name": "zero2"}}),
}  # fmt: skip
PAIRS = [
    (source, [target for target in MESHES if (len(source) + len(target)) % 3 or source == target])
    for source in MESHES
]


def on(name: str) -> tuple[TrainConfig, int]:
    """A configuration with Adam and dropout on a mesh, and how many ranks that has."""
    sizes, choices = MESHES[name]
    model = {"hidden": (7, 6, 9, 5, 8, 6, 7), "dropout": 0.1}
    optimizer = {"name": "adamw", "momentum": 0.0}
    mesh = dict(zip(("data", "pipeline", "operator"), sizes, strict=True))
    chosen = {"epochs": 3, "batch_size": 13, "model": model, "optimizer": optimizer, "mesh": mesh}
    return changed(**chosen, **choices), math.prod(sizes)


@pytest.mark.parametrize(("source", "targets"), PAIRS, ids=list(MESHES))
def test_from_any_mesh_on_any_mesh(source: str, targets: list[str], tmp_path: Path) -> None:
    expected = saved(tmp_path, *on(source), at=4)[0][0]
    for target in targets:
        config, ranks = on(target)
        for losses, _ in resumed(tmp_path, config, ranks, own=source == target):
            if source == target != "2x1x2":
                assert losses == expected
            else:
                assert losses == pytest.approx(expected, rel=1e-10), target


def loaded(folder: Path, config: TrainConfig, ranks: int) -> list[dict[str, torch.Tensor]]:
    """The tensors of each rank after loading, by name; replicas' own without their dimension."""

    def body(world: Communicator) -> dict[str, torch.Tensor]:
        trainer = trainer_of(config, world)
        checkpoint = newest(folder, trainer.mesh.world)
        assert checkpoint is not None
        load(trainer, checkpoint, checkpoint.header["ranks"], own=False)
        found = {piece.name: piece.values.clone() for piece in saved_pieces(trainer)}
        trainer.close()
        return found

    return run_ranks(ranks, body)


def rows(folder: Path, name: str) -> torch.Tensor:
    """A tensor of the newest checkpoint, whole."""
    checkpoint = newest(folder, Communicator(Loopback()))
    assert checkpoint is not None
    return checkpoint.read(name, whole(checkpoint.shape(name)))


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_residuals_keep_their_sum_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    config = changed(epochs=3, **KINDS["oktopk"])
    saved(tmp_path, config, 3, at=4)
    for name in ("residual/layers.0.weight", "velocity/layers.1.weight"):
        old = rows(tmp_path, name)
        assert old.shape[0] == 3
        assert old.abs().sum() > 0
        new = [tensors[name] for tensors in loaded(tmp_path, config, ranks)]
        torch.testing.assert_close(sum(new)[0], old.sum(0), rtol=0, atol=1e-15)
    momenta = [tensors["momentum/layers.1.bias"] for tensors in loaded(tmp_path, config, ranks)]
    assert all(torch.equal(m, rows(tmp_path, "momentum/layers.1.bias")) for m in momenta)


def test_residuals_go_from_a_pipeline_to_nodes_that_remember_as_one(tmp_path: Path) -> None:
    mesh = {"mesh": {"data": 2, "pipeline": 2}}
    config = changed(epochs=3, **KINDS["oktopk"])
    saved(tmp_path, changed(epochs=3, **KINDS["oktopk"], **mesh), 4, at=4)
    sparse = {"sparse": {**SPARSE, "hierarchical": True}, "optimizer": {"momentum": 0.0}}
    config = changed(epochs=3, **sparse)

    def body(world: Communicator) -> list[tuple[Region, torch.Tensor]]:
        trainer = trainer_of(config, world)
        checkpoint = newest(tmp_path, trainer.mesh.world)
        assert checkpoint is not None
        load(trainer, checkpoint, checkpoint.header["ranks"], own=False)
        pieces = saved_pieces(trainer)
        return [(p.region, p.values) for p in pieces if p.name == "residual/layers.0.weight"]

    found = run_ranks(4, body, (0, 0, 1, 1))
    total = torch.zeros(rows(tmp_path, "residual/layers.0.weight").shape[1:], dtype=torch.float64)
    for region, values in (piece for pieces in found for piece in pieces):
        total[tuple(side.slice for side in region[1:])] += values[0]
    expected = rows(tmp_path, "residual/layers.0.weight").sum(0)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["periodic", "daso"])
def test_other_numbers_of_local_replicas_begin_with_the_mean(kind: str, tmp_path: Path) -> None:
    config = changed(epochs=3, **KINDS[kind])
    saved(tmp_path, config, 3, at=5, nodes=[0, 1, 2])
    for name in ("replicas/layers.0.weight", "optimizer/layers.0.weight/momentum_buffer"):
        old = rows(tmp_path, name)
        assert not torch.equal(old[0], old[1])
        for tensors in loaded(tmp_path, config, 2):
            torch.testing.assert_close(tensors[name][0], old.mean(0), rtol=0, atol=1e-15)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "wider": ({"model": {"hidden": (8,)}}, r"layers\.0\.weight is \[6, 5\], but \[8, 5\] here"),
    "deeper": ({"model": {"hidden": (6, 3)}}, r"holds no model/layers\.2\.weight"),
    "shallower": ({"model": {"hidden": ()}}, "its model/layers.0.weight is"),
    "precision": ({"precision": "fp32"}, r"as torch\.float64, but this run computes in torch\.f"),
    "optimizer": (KINDS["adamw"], "the state of its optimizer is SGD, but AdamW here"),
    "sparse": (KINDS["oktopk"], "the state of its exchange is none, but .'steps', 'parts'. here"),
    "local": (KINDS["periodic"], "the state of its local steps is none, but .'steps'. here"),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_something_else_is_refused_by_all_ranks(other: str, tmp_path: Path) -> None:
    changes, words = OTHERS[other]
    saved(tmp_path, changed(epochs=3), 1, at=2)
    config = changed(**{"epochs": 3, **changes})

    def body(world: Communicator) -> bool:
        trainer = trainer_of(config, world)
        checkpoint = newest(tmp_path, trainer.mesh.world)
        assert checkpoint is not None
        with pytest.raises(DataError, match=words) as caught:
            load(trainer, checkpoint, checkpoint.header["ranks"], own=False)
        return caught.value.agreed

    assert all(run_ranks(2, body))


@pytest.mark.parametrize("source", [1, 2])
def test_tied_weights_have_one_name_wherever_they_are(source: int, tmp_path: Path) -> None:
    """The last stage has them as the head's, the first one as the embedding's."""
    config = text_config(epochs=3, model={"tied": True})
    meshes = {ranks: dataclasses.replace(config, mesh=MeshConfig(1, ranks, 1)) for ranks in (1, 2)}
    expected = saved(tmp_path, meshes[source], source, at=4)[0][0]
    for losses, _ in resumed(tmp_path, meshes[3 - source], 3 - source, own=False):
        assert losses == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", [name for name in MESHES if name != "alone"])
def test_what_one_rank_is_told_all_know_after_the_step(name: str) -> None:
    config, ranks = on(name)

    def body(world: Communicator) -> list[bool]:
        told = [False]
        trainer = build_trainer(config, build_mesh(config, world), lambda: told[0])
        before = trainer.step(0, 0).stop
        told[0] = world.rank == world.size - 1
        after = trainer.step(0, 1).stop
        trainer.close()
        return [before, after]

    assert run_ranks(ranks, body) == [[False, True]] * ranks
