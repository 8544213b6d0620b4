"""The whole trainer, for a user's own model and samples: what `dist-ml train` does, as a call."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_ml.cli import arguments
from dist_ml.cli.train import configuration
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.errors import ConfigError
from dist_ml.script import started_world

if TYPE_CHECKING:
    import torch


def fit(
    model: "torch.nn.Module | Sequence[tuple[str, torch.nn.Module]] | None" = None,
    dataset: Any = None,
    *,
    loss: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None" = None,
    config: str = "train",
    config_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as `dist-ml train OVERRIDES` does, with its run folder, checkpoints, resuming, meshes
    and reports, on what is handed in instead of what the configuration names; the run's summary, on
    all ranks. Collective.

    `model`: a module, for meshes of the data axis, or `[(name, module), …]`, each on the outputs of
    the one before, which a pipeline can cut; every rank builds the same, and rank 0's values are
    taken. `dataset`: (training samples, test samples), each with `len(samples)` and `samples[i]`, a
    pair (input, target). What isn't handed in is the configuration's. `loss(outputs, targets)`:
    the sum over a batch's samples; else it is cross-entropy for classes, and the mean squared error
    for values. `config`: a configuration of ours, or of the folder `config_dir`.

    `ConfigError` on all ranks for what doesn't fit together. A run that a signal stops is saved and
    ends the script with status 75, as `dist-ml train` does.
    """
    from dist_ml.train import logs
    from dist_ml.train.own import Own
    from dist_ml.train.run import train_run
    from dist_ml.train.stop_signals import STOPPED, StopSignals

    world = started_world()
    named = {"model": model, "data": dataset}
    handed = [f"{key}=own" for key, it in named.items() if it is not None]
    with raise_on_all_ranks(world):
        request = _request(config, config_dir, [*handed, *overrides])
    composed = from_root(world, lambda: configuration(request))
    with StopSignals() as signals:
        summary = train_run(composed, world, Own(model, dataset, loss), signals)
    logs.stop()  # the program may train again
    if summary["status"] == "stopped":
        sys.exit(STOPPED)
    return summary


def _request(
    config: str, config_dir: str | Path | None, overrides: Sequence[str]
) -> arguments.Request:
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    words = ["--config-name", config, *folder, *overrides]
    request = arguments.parse(words, "dist_ml.fit", config_name=config)
    if request.help or request.show or request.multirun:
        raise ConfigError(
            f"overrides={list(overrides)} must be key=value; for flags use dist-ml train"
        )
    return request
