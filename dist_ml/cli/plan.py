"""`dist-ml plan [overrides]`: what a step of a training run would compute, move, hold and take."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_ml.cli import arguments, compose, configured, plan_search, terminal
from dist_ml.cli.quantities import count, size_in_bytes
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.memory import physical_bytes, spell_bytes
from dist_ml.plan.links import LINKS, link_named

if TYPE_CHECKING:
    from dist_ml.plan.prediction import Prediction

PROGRAM = "dist-ml plan"
_FLAGS = f"""\
  -n RANKS               ranks of the run (default: ranks=…, or what the mesh comes to)
  --nodes N              nodes that they are spread over (default 1)
  --network NAME         between nodes: {", ".join(LINKS)}
  --threads T            of a rank (default: OMP_NUM_THREADS, or 1)
  --search               the ten best ways to spread the step over the ranks; keys that overrides
                         name keep their values
  --memory SIZE          of a node, for --search: 64GB (default: this machine's)
  --json FILE            write all figures there"""


def main(argv: Sequence[str]) -> int:
    """No MPI, no training; seconds need `dist-ml calibrate`, once a machine."""
    parser = terminal.Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("-n", dest="ranks", type=count)
    parser.add_argument("--nodes", type=count, default=1)
    parser.add_argument("--network", default="1gbit")
    parser.add_argument("--threads", type=count)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--memory", type=size_in_bytes)
    parser.add_argument("--json", type=Path)
    options, rest = parser.parse_known_args(list(argv))
    request = arguments.parse(rest, PROGRAM, config_name="train")
    if request.help or request.show:
        if request.help:
            terminal.say(_FLAGS)
        return configured.show(request, TrainConfig, PROGRAM)
    if options.memory is not None and not options.search:
        raise ConfigError("--memory has no effect without --search; leave it out")
    config = from_mapping(TrainConfig, compose.composed(request))
    found = _searched(config, request, options) if options.search else _planned(config, options)
    if options.json is not None:
        _write(options.json, found)
    return 0


def _planned(config: TrainConfig, options: Any) -> dict[str, Any]:
    from dist_ml.plan.prediction import predict

    link = link_named(options.network) if options.nodes > 1 else None
    ranks = options.ranks or _ranks(config)
    found = predict(config, ranks, options.nodes, link, _threads(options))
    _show(found)
    return found.to_mapping()


def _searched(config: TrainConfig, request: arguments.Request, options: Any) -> dict[str, Any]:
    link = link_named(options.network) if options.nodes > 1 else None
    return plan_search.run(
        config,
        request.overrides,
        options.ranks or _ranks(config),
        options.nodes,
        link,
        _threads(options),
        options.memory,
    )


def _write(file: Path, found: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(found, indent=1))
    except OSError as error:
        raise ConfigError(
            f"--json {file} can't be written ({error.strerror or error}); choose another path"
        ) from error


def _threads(options: Any) -> int:
    """OpenMP takes a list, one number a level of nesting; the first is torch's."""
    if options.threads:
        return int(options.threads)
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and int(first) else 1


def _ranks(config: TrainConfig) -> int:
    if config.ranks is not None:
        return config.ranks
    sizes = config.mesh.data, config.mesh.pipeline, config.mesh.operator
    return math.prod(size or 1 for size in sizes)


def _show(found: "Prediction") -> None:
    plan = found.plan
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.sizes.items())
    pieces = plan.schedule.num_microbatches
    terminal.say(f"{'mesh':15} {mesh}, {pieces} x {plan.microbatch} samples a step and replica")
    parameters = [plan.num_parameters(rank) for rank in range(plan.sizes["pipeline"])]
    terminal.say(f"{'parameters':15} {max(parameters):,} on the rank that holds most")
    for axis, words in plan.words.items():
        terminal.say(f"{axis + ' words':15} {words:,} sent by a rank in a step")
    held = found.memory
    parts = ", ".join(f"{name} {spell_bytes(size)}" for name, size in held.items() if size)
    terminal.say(f"{'memory':15} {spell_bytes(sum(held.values()))} a rank: {parts}")
    room = physical_bytes() // min(plan.num_ranks, found.ranks_per_node)
    if sum(held.values()) > room:
        terminal.say(f"{'':15} more than the {spell_bytes(room)} of a rank on a node like this one")
    if found.seconds is None:
        terminal.say(f"{'seconds':15} not known: {found.why_no_seconds}")
        return
    total = found.seconds.total
    rate = found.plan.config.batch_size / total
    terminal.say(f"{'step':15} {1e3 * total:.3g} ms, {rate:,.0f} samples/s")
    for name, seconds in found.seconds.phases.items():
        terminal.say(f"{'  ' + name:15} {1e3 * seconds:.3g} ms, {seconds / total:.0%}")
    if plan.sizes["pipeline"] > 1:
        terminal.say(f"{'bubble':15} {found.seconds.bubble:.1%} of the pipeline's time")
