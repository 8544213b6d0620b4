"""`dist-ml evaluate RUN`: a finished run's weights, on the test samples, on any number of ranks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.cli import ranks, terminal
from dist_ml.cli.terminal import Parser

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator


def main(argv: Sequence[str]) -> int:
    """Print what the saved weights reach; the number of ranks need not be the training's."""
    parser = Parser(
        prog="dist-ml evaluate",
        description="Measure a finished run's saved weights on the test samples.",
    )
    parser.add_argument("run", type=Path, help="the run's folder, as in runs/digits/<time>")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors that are the user's, too"
    )
    options = parser.parse_args(argv)
    return ranks.run_on_ranks(
        lambda world: _evaluate(world, options.run, options.json), options.debug
    )


def _evaluate(world: "Communicator", folder: Path, as_json: bool) -> int:
    from dist_ml.train.evaluate import evaluate_run

    result = evaluate_run(folder, world)
    if world.rank == 0 and as_json:
        terminal.say(json.dumps(result))
    elif world.rank == 0:
        for name, value in result.items():
            terminal.say(f"{name.replace('_', ' '):15} {_spell(name, value)}")
    return 0


def _spell(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.6g}"
    return str(value)
