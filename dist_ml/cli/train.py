"""`dist-ml train`: compose the configuration, make the world, train."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dist_ml.cli import arguments, compose, configured, ranks
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train.stop_signals import STOPPED, StopSignals

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator
    from dist_ml.train.trainer import Trainer

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

    config = from_root(world, lambda: configuration(request))
    summary = train_run(config, world, signals=signals, predict=_beside_measured)
    return STOPPED if summary["status"] == "stopped" else 0


def _beside_measured(
    config: TrainConfig, trainer: "Trainer", summary: Mapping[str, Any], ranks_per_node: int
) -> dict[str, Any]:
    """What was predicted, for the summary of a run that has ended: planning is imported no
    earlier.
    """
    from dist_ml.plan.deviations import beside_measured

    return beside_measured(config, trainer, summary, ranks_per_node)


def configuration(request: Request) -> TrainConfig:
    """Composed from files and overrides, and converted: the only time."""
    return from_mapping(TrainConfig, compose.composed(request))
