"""`dist-ml train`: compose the configuration, make the world, train."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dist_ml.cli import arguments, compose, configured, ranks
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError

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
    return ranks.run_on_ranks(lambda world: train(world, request), request.debug)


def train(world: "Communicator", request: Request) -> int:
    """One run on all ranks of `world`. Collective."""
    from dist_ml.comm.agreement import from_root

    mapping = from_root(world, lambda: checked(request, world.size))
    config = from_mapping(TrainConfig, mapping)
    from dist_ml.train.run import train_run

    train_run(config, world)
    return 0


def checked(request: Request, size: int) -> dict[str, Any]:
    """The composed mapping, known to fit `TrainConfig` and the number of ranks."""
    mapping = compose.composed(request)
    config = from_mapping(TrainConfig, mapping)
    if config.ranks not in (None, size):
        raise ConfigError(
            f"ranks={config.ranks}, but {size} rank{'s were' if size > 1 else ' was'} started; "
            f"start {config.ranks} (dist-ml launch -n {config.ranks} train …), or leave ranks out"
        )
    return mapping
