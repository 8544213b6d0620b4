"""One of several training configurations that a sweep or an experiment starts: composed and
converted, so that one with a mistake in it stops all before any starts.
"""

from collections.abc import Sequence
from dataclasses import replace

from dist_ml.cli import compose
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError


def composed_point(request: Request, overrides: Sequence[str]) -> TrainConfig:
    """The configuration that `request` names, with these overrides alone."""
    alone = replace(request, overrides=tuple(overrides), multirun=False)
    return from_mapping(TrainConfig, compose.composed(alone))


def refuse_ranks(what: str) -> None:
    """`ConfigError` where ranks have been started: `what` starts MPI jobs of its own."""
    from dist_ml.comm import mpi

    if mpi.launched():
        raise ConfigError(
            f"{what} starts an MPI job for each point, so it can't run inside one; start it "
            "without mpiexec or srun"
        )
