"""`dist-ml experiment NAME`: a scaling experiment from a configuration, one MPI job a point, gone
on with where it was stopped, and a report at its end.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.cli import arguments, compose, configured, terminal
from dist_ml.cli.arguments import Request
from dist_ml.cli.composed_point import composed_point, refuse_ranks
from dist_ml.config.convert import from_mapping
from dist_ml.config.experiment import ExperimentConfig
from dist_ml.config.names import require_one_of
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError

if TYPE_CHECKING:
    from dist_ml.experiment.points import Point

PROGRAM = "dist-ml experiment"
_GROUP = "experiment"
_PLAN = "--plan"
_FLAGS = """\
  --help, -h             this text; without a name: which experiments there are
  --plan                 tell all points and stop
  --cfg job [--resolve]  print the composed configuration and stop; --package KEY: only that part
  --config-dir DIR       look for configurations in DIR too, experiments in DIR/experiment
  --debug                show tracebacks of errors that are the user's, too"""


def main(argv: Sequence[str]) -> int:
    """Run what is left of an experiment, and report on all of it; 1 when a run failed."""
    words = [word for word in argv if word != _PLAN]
    request = arguments.parse(words, PROGRAM, config_name="")
    if request.help and not request.overrides:
        terminal.say(_help(request))
        return 0
    request = _named(request)
    if request.help or request.show:
        return configured.show(request, ExperimentConfig, f"{PROGRAM} NAME", _FLAGS)
    refuse_ranks(PROGRAM)
    config = from_mapping(ExperimentConfig, _composed(request))
    points = plan(request, config)
    if len(words) < len(argv):
        terminal.say(_in_words(points, config))
        return 0
    from dist_ml.cli.experiment_run import ExperimentRun

    return ExperimentRun(request, config, points).run()


def plan(request: Request, config: ExperimentConfig) -> "list[Point]":
    """All points, each composed, converted and checked, so that an experiment with a mistake in it
    stops before it starts.
    """
    from dist_ml.experiment.axes import combinations, per_rank_overrides
    from dist_ml.experiment.points import Point, check_point, check_points, ranks_of

    base = replace(request, config_name=config.base.removesuffix(".yaml"))
    require_one_of("base", base.config_name, compose.names(request))
    points = []
    for number, combination in enumerate(combinations(config), 1):
        overrides = combination.overrides
        try:
            found = composed_point(base, overrides)
            ranks = ranks_of(found)
            own = per_rank_overrides(config, ranks)
            own += (f"ranks={ranks}",) if found.ranks is None else ()
            overrides += own
            found = composed_point(base, overrides) if own else found
            check_point(config, found, ranks)
        except DistMLError as error:
            title = " ".join(f"{key}={value}" for key, value in combination.settings.items())
            raise ConfigError(f"point {number} ({title}): {error}") from error
        points.append(Point(number, combination.settings, overrides, found, ranks))
    check_points(config, points)
    return points


def _named(request: Request) -> Request:
    """The request with the experiment's file as its configuration: its first word names it."""
    name = request.overrides[0] if request.overrides else ""
    if not name or "=" in name or name.startswith("~"):
        raise ConfigError(
            f"which experiment? The first word names it: {', '.join(_names(request))}"
        )
    if request.config_name:
        raise ConfigError(
            f"--config-name={request.config_name} has no effect: an experiment is named by the "
            f"first word, here {name}, and its training configuration by base=<name>"
        )
    if request.multirun:
        raise ConfigError(
            "--multirun has no effect: an experiment runs all points of its axes; leave it out"
        )
    file = name.removesuffix(".yaml")
    if file not in _names(request):
        raise ConfigError(
            f"experiment {name} is not one of {', '.join(_names(request))}; --config-dir DIR adds "
            "those of DIR/experiment"
        )
    return replace(request, overrides=request.overrides[1:], config_name=f"{_GROUP}/{file}")


def _names(request: Request) -> list[str]:
    return compose.groups(request).get(_GROUP, [])


def _composed(request: Request) -> dict[str, object]:
    mapping = compose.composed(request)
    known, trained = (
        {each.name for each in fields(cls)} for cls in (ExperimentConfig, TrainConfig)
    )
    for key in (each for each in mapping if each in trained - known):
        raise ConfigError(
            f"{key} is a key of the training configuration, which an experiment sets in fixed for "
            f"all points, or varies in axes: fixed.{key}=<value> or axes.{key}=[<values>]; a key "
            "with dots is written whole, as in 'fixed={optimizer.lr:0.1}'"
        )
    if _GROUP in mapping:
        raise ConfigError(
            f"{request.config_name}.yaml lacks its first line, without which Hydra puts its keys "
            f"under {_GROUP}; begin it with: # @package _global_"
        )
    return mapping


def _in_words(points: "Sequence[Point]", config: ExperimentConfig) -> str:
    """Each point with what it is run with."""
    lines = [
        f"{point.number:3} on {point.ranks} rank{'s' if point.ranks > 1 else ''}: "
        f"{' '.join(point.overrides)}"
        for point in points
    ]
    times = f"{config.repetitions} run{'s' if config.repetitions > 1 else ''} each"
    return "\n".join([f"{len(points)} points of {config.base}, {times}", *lines])


def _help(request: Request) -> str:
    names = _names(request)
    width = max(map(len, names), default=0)
    lines = [f"  {name:{width}}  {_first_comment(request, name)}" for name in names]
    return "\n".join(
        [f"usage: {PROGRAM} NAME [flags] [overrides]", "", *lines, "", "Flags:", _FLAGS]
    )


def _first_comment(request: Request, name: str) -> str:
    """What an experiment's file says of itself in its first comment."""
    for folder in (request.config_dir, compose.config_folder()):
        file = Path(folder or "", _GROUP, f"{name}.yaml")
        if folder is not None and file.is_file():
            comments = (
                line.lstrip("# ") for line in file.read_text().splitlines() if line[:1] == "#"
            )
            return next((line for line in comments if not line.startswith("@package")), "")
    return ""
