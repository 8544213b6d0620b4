"""The steps that `dist-ml bench step` compares, all on the same samples of one rank."""

from collections.abc import Callable

import torch

from dist_ml.bench.bare_step import ALONE, BARE, FUSED, BareStep, alone, steps_of
from dist_ml.config.train import TrainConfig
from dist_ml.measure.compare import own_seconds
from dist_ml.train.trainer import Trainer

OURS = "dist_ml"


def our_steps(trainer: Trainer, steps: int) -> Callable[[], float]:
    """Our step with all that it does in a run, from dealing the samples to the update: seconds of
    one, of `steps` together.
    """
    count = 0

    def one() -> None:
        nonlocal count
        trainer.step(0, count % trainer.sampler.steps_per_epoch)
        count += 1

    return lambda: own_seconds(one, steps)


def bare_candidates(
    trainer: Trainer, config: TrainConfig, steps: int
) -> dict[str, Callable[[], float]]:
    """The bare loop with torch's plain and with its fused SGD, and the fused one in a process with
    a user's own settings.
    """
    train = trainer.dataset.train
    batch = train.batch(torch.arange(train.num_samples).numpy())
    plain, fused = (
        BareStep(
            (train.num_features, *config.model.hidden, train.num_outputs),
            config.batch_size,
            config.optimizer.lr,
            config.optimizer.momentum,
            config.optimizer.weight_decay,
            fused,
        )
        for fused in (False, True)
    )
    return {
        BARE: steps_of(plain, batch.inputs, batch.targets, steps),
        FUSED: steps_of(fused, batch.inputs, batch.targets, steps),
        ALONE: alone(fused, train.num_samples, steps),
    }
