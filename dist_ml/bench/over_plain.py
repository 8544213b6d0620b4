"""Our training step in turn with plain PyTorch loops of the same model, from the same weights."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch

from dist_ml.bench.bare_loop import BareLoop
from dist_ml.bench.form import Record, milliseconds
from dist_ml.bench.reproduce import difference
from dist_ml.bench.step_candidates import OURS, our_steps
from dist_ml.measure.compare import alternate, own_seconds, ratio
from dist_ml.train.trainer import Trainer

COMPARED_STEPS = 20


def measure(
    trainer: Trainer, loops: Mapping[str, BareLoop], steps: int, rounds: int, *, losses: bool
) -> dict[str, Any]:
    """Seconds a step, by candidate and round, `steps` together; with `losses`, before that, how far
    ours lie from those of each loop over the first steps, on the same samples (else null).
    """
    loss = _difference_of_losses(trainer, loops) if losses else None
    candidates: dict[str, Callable[[], float]] = {OURS: our_steps(trainer, steps)}
    for name, loop in loops.items():
        candidates[name] = partial(own_seconds, loop.step, steps)
    alternate(candidates, 1)
    return {
        "seconds": alternate(candidates, rounds),
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def _difference_of_losses(trainer: Trainer, loops: Mapping[str, BareLoop]) -> float:
    """The largest, relative."""
    ours: list[float] = []
    plain: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(COMPARED_STEPS):
        epoch, index = divmod(number, trainer.sampler.steps_per_epoch)
        ids = trainer.sampler.share(epoch, index, 0, 1)
        ours.append(trainer.step(epoch, index).loss)
        for name, loop in loops.items():
            plain[name].append(loop.step_on(torch.from_numpy(ids)))
    return max(difference(ours, losses) for losses in plain.values())


def records(model: str, found: Mapping[str, Any], items: int, unit: str) -> list[Record]:
    """A row a candidate; a step is of so many `items`, called `unit`."""
    rows: list[Record] = []
    for name, values in found["seconds"].items():
        rows.append(
            {
                "model": model,
                "step": name,
                "parameters": found["parameters"],
                **milliseconds(values),
                f"{unit}/s": items / median(values),
                "ours over it": ratio(found["seconds"][OURS], values).median,
            }
        )
    return rows
