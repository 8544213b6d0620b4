"""The whole product of the keys that combine: every combination trains as it says, or is refused in
words.

| exchange            | what it trains to                                                       |
|---------------------|-------------------------------------------------------------------------|
| dense, zero1, zero2 | the losses of dense gradients on `native`, unclipped or clipped alike   |
| sparse, density 1   | the same; spardl nearly, whose regions have room for k/P entries each    |
| daso on one node    | the same: a node's gradients are summed, and all nodes are one          |
| periodic, period 1  | the same where nothing is clipped; else each rank clips its own         |

Ranks end with the same weights. `wire` and `precision` of 16 bits round, so the losses are close.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dist_ml.comm.allreduce.family import ALLREDUCES
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse.family import SPARSE_ALLREDUCES
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.exchange import DATA_PARALLEL
from dist_ml.train.members import check_members
from tests.configurations import mapping, synthetic

pytestmark = pytest.mark.mpi

BASE = from_mapping(
    TrainConfig,
    {
        **mapping(
            *("epochs=3", "batch_size=12", "model.hidden=[6]", "model.dropout=0"),
            *("optimizer.lr=0.1", "optimizer.momentum=0", "lr_schedule=constant"),
        ),
        # one step an epoch
        "data": synthetic(num_train=12, num_test=1, num_features=5),
    },
)
CLIP_NORM = 0.3  # below the norm of every step
EXCHANGES = tuple(
    itertools.product(
        tuple(ALLREDUCES),
        ("fp32", "bf16", "fp16"),
        ("auto", "none", "thread", "poll"),
        ("none", "auto", *SPARSE_ALLREDUCES),
    )
)
# clip_norm, nonfinite, accumulation. Two ranks of MPICH train all of them; in other worlds, and for
# what is refused whatever they are, any two of the keys meet in all ways.
STEPS = tuple(itertools.product((None, CLIP_NORM), ("stop", "skip"), (1, 2)))
FEW_STEPS = (
    (None, "stop", 1),
    (None, "skip", 2),
    (CLIP_NORM, "stop", 2),
    (CLIP_NORM, "skip", 1),
)


def combinations(
    data_parallel: str, precision: str, *, whole: bool
) -> Iterator[TrainConfig | ConfigError]:
    """Every configuration that a world tries, or what refuses it."""
    for exchange in EXCHANGES:
        few = [configured(data_parallel, precision, *exchange, *steps) for steps in FEW_STEPS]
        yield from few
        if whole and not all(isinstance(each, ConfigError) for each in few):
            for steps in STEPS:
                if steps not in FEW_STEPS:
                    yield configured(data_parallel, precision, *exchange, *steps)


def configured(
    data_parallel: str,
    precision: str,
    allreduce: str,
    wire: str,
    overlap: str,
    sparse: str,
    clip_norm: float | None,
    nonfinite: str,
    accumulation: int,
) -> TrainConfig | ConfigError:
    try:
        config = replace(
            BASE,
            precision=precision,  # type: ignore[arg-type]
            clip_norm=clip_norm,
            nonfinite=nonfinite,
            accumulation=accumulation,
            allreduce=replace(BASE.allreduce, name=allreduce, wire=wire, overlap=overlap),
            sparse=replace(BASE.sparse, allreduce=sparse, **SPARSE if sparse != "none" else {}),
            data_parallel=replace(
                BASE.data_parallel, name=data_parallel, **LOCAL.get(data_parallel, {})
            ),
        )
        check_members(config)
        return config
    except ConfigError as error:
        return error


SPARSE: dict[str, Any] = {"density": 1.0, "dense_below": 0}
LOCAL: dict[str, dict[str, Any]] = {"periodic": {"period": 1}}


@pytest.fixture(scope="module")
def dense_losses(world: Communicator) -> dict[tuple[str, float | None], list[float]]:
    """The reference, by precision and clip_norm."""
    return {
        (precision, clip_norm): trained(
            replace(BASE, precision=precision, clip_norm=clip_norm),  # type: ignore[arg-type]
            world,
        )[0]
        for precision in ("fp32", "fp64", "bf16")
        for clip_norm in (None, CLIP_NORM)
    }


def trained(config: TrainConfig, world: Communicator) -> tuple[list[float], list[bytes]]:
    """Losses, and the weights that each rank ends with."""
    mesh = build_mesh(BASE, world)
    trainer = build_trainer(config, mesh)
    losses = [step.loss for epoch in range(3) for step in trainer.epoch(epoch)]
    trainer.close()
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
    everywhere = world.allgather_objects(weights.numpy().tobytes())
    mesh.free()
    return losses, everywhere


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("data_parallel", list(DATA_PARALLEL))
def test_every_combination_trains_or_is_refused(
    world: Communicator,
    dense_losses: dict[tuple[str, float | None], list[float]],
    data_parallel: str,
    precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    num_trained, shared, refused = 0, 0, 0
    whole = world.size == 2 and world.transport.flavour == "MPICH"
    for config in combinations(data_parallel, precision, whole=whole):
        if isinstance(config, ConfigError):
            assert any(word in str(config) for word in ("leave it at", "use ", "set ")), config
            refused += 1
        elif trains_like_another(config):
            shared += 1
        else:
            check(config, world, dense_losses[precision, config.clip_norm])
            num_trained += 1
    assert refused > 0
    assert num_trained > 0
    if world.rank == 0:
        with capsys.disabled():
            print(  # noqa: T201 - the numbers are part of what is asked
                f"\n{data_parallel} {precision}: {num_trained} trained, {shared} the same as one "
                f"of those, {refused} refused"
            )


def trains_like_another(config: TrainConfig) -> bool:
    """Does it come down to another combination of the product, which is trained?"""
    every_step = config.data_parallel.name == "dense"
    if config.sparse.allreduce == "auto":  # what it chooses is trained under its own name
        return config.allreduce != BASE.allreduce
    if every_step and config.sparse.allreduce == "none" and config.allreduce.overlap == "auto":
        return True  # none, on one node
    # A finite gradient that is clipped has been looked at already.
    return config.sparse.allreduce == "none" and (
        config.nonfinite == "skip" and config.clip_norm is not None
    )


def check(config: TrainConfig, world: Communicator, expected: list[float]) -> None:
    found, everywhere = trained(config, world)
    told = f"{config.data_parallel} {config.allreduce} {config.sparse} {config.clip_norm}"
    told += f" {config.nonfinite} {config.accumulation}"
    if config.data_parallel.name == "periodic" and config.clip_norm and world.size > 1:
        assert all(math.isfinite(loss) for loss in found), told
        assert found[-1] < found[0], told
    else:
        assert found == pytest.approx(expected, rel=tolerance(config)), told
    assert all(bits == everywhere[0] for bits in everywhere), told


def tolerance(config: TrainConfig) -> float:
    if config.precision == "bf16" or config.allreduce.wire != "fp32":
        return 2e-2
    if config.sparse.allreduce == "spardl":
        return 1e-3
    return 1e-12 if config.precision == "fp64" else 1e-5
