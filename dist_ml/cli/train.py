"""`dist-ml train`: compose the configuration, make the world, train."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dist_ml.cli import arguments, compose, configured, ranks
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train.stop_signals import STOPPED, StopSignals

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator

PROGRAM = "dist-ml train"


def main(argv: Sequence[str]) -> int:
    """Train on the ranks that were started; with --multirun, start them for each point of a
    sweep.
    """
    request = arguments.parse(argv, PROGRAM, config_name="train")
    if request.help or request.show:
        return configured.show(request, TrainConfig, PROGRAM)
    if request.multirun:
        from dist_ml.cli import sweep

        return sweep.run(request)
    with StopSignals() as signals:  # before MPI starts
        run = partial(train, request=request, signals=signals)
        return ranks.run_on_ranks(run, request.debug)


def train(world: "Communicator", request: Request, signals: StopSignals) -> int:
    """One run on all ranks of `world`, with the configuration that rank 0 composes: its exit
    status. Collective.
    """
    from dist_ml.comm.agreement import from_root
    from dist_ml.train.run import train_run

    summary = train_run(from_root(world, lambda: configuration(request)), world, signals=signals)
    return STOPPED if summary["status"] == "stopped" else 0


def configuration(request: Request) -> TrainConfig:
    """Composed from files and overrides, and converted: the only time."""
    return from_mapping(TrainConfig, compose.composed(request))
